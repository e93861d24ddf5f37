"""Tables, curves and words of docs/results.md from finished results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from results_cells import Result

from dinocell.metrics import Interval, difference_intervals, score_intervals
from dinocell.report.charts import PALETTE

SHOWN = ("MMA", "SEG", "DET", "AP50")
KINDS = ("pooled", "macro")


def unique(values: Iterable[Any]) -> list[Any]:
    """Values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def cell(interval: Interval) -> str:
    """`0.612 [0.580, 0.640]`."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def signed(interval: Interval) -> str:
    """`+0.031 [−0.004, +0.066]`, with true minus signs."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]".replace("-", "−")


def runs(results: Sequence[Result]) -> list[list[Any]]:
    """Scores [seed][image]: the results of one method by rising seed, their images in one order.

    Raises:
        ValueError: seeds were scored on different images.
    """
    ordered = sorted(results, key=lambda result: result.seed)
    if any(result.images != ordered[0].images for result in ordered):
        raise ValueError(f"{ordered[0].method}, {ordered[0].dataset}: seeds were scored on different images")
    return [result.scores for result in ordered]


def verdict(interval: Interval) -> str:
    """What an interval of a difference says, in a word or two."""
    if interval.low > 0:
        return "better"
    if interval.high < 0:
        return "worse"
    return "no difference beyond chance"


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def peer_tables(results: Sequence[Result]) -> list[str]:
    """For each data set the methods with their pooled and macro scores, seconds and versions."""
    lines: list[str] = []
    for dataset in unique(r.dataset for r in results):
        here = [r for r in results if r.dataset == dataset]
        lines += [f"**{dataset}**, {len(here[0].images)} test images", ""]
        for kind in KINDS:
            rows = []
            for method in unique(r.method for r in here):
                mine = [r for r in here if r.method == method]
                intervals = score_intervals(runs(mine))[kind]
                rows.append([method, *(cell(intervals[name]) for name in SHOWN)])
            lines += table(rows, [f"{kind} scores", *SHOWN])
        rows = [peer_facts([r for r in here if r.method == m]) for m in unique(r.method for r in here)]
        lines += table(rows, ["method", "trained for, s", "s an image", "runs", "version"])
    return lines


def peer_facts(results: Sequence[Result]) -> list[str]:
    """Method, seconds of training, seconds an image, number of trainings, version."""
    facts = [r.facts for r in results]
    trained = np.mean([f["train_seconds"] for f in facts]) if "train_seconds" in facts[0] else None
    speed = np.mean([f["seconds_per_image"] for f in facts])
    shown = "see the model card" if trained is None else f"{trained:.0f}"
    return [results[0].method, shown, f"{speed:.2f}", str(len(results)), str(facts[0].get("version", ""))]


def ablation_tables(results: Sequence[Result], baseline: str = "random") -> list[str]:
    """For each data set: scores by start and share of the labels, then differences from the baseline start."""
    lines: list[str] = []
    for dataset in unique(r.dataset for r in results):
        here = [r for r in results if r.dataset == dataset]
        lines += [f"**{dataset}**, {len(here[0].images)} test images", ""]
        for kind in KINDS:
            rows = []
            for fraction in sorted(unique(r.fraction for r in here)):
                for start in unique(r.method for r in here):
                    mine = [r for r in here if (r.method, r.fraction) == (start, fraction)]
                    if mine:
                        intervals = score_intervals(runs(mine))[kind]
                        trained = f"{fraction:g} % ({mine[0].facts['train_images']})"
                        rows.append([trained, start, str(len(mine)), *(cell(intervals[name]) for name in SHOWN)])
            lines += table(rows, ["labels (images)", "start", "seeds", *(f"{name}, {kind}" for name in SHOWN)])
        rows = difference_rows(here, baseline)
        if rows:
            lines += table(rows, ["labels", "difference (pooled)", *SHOWN, f"{SHOWN[0]} says"])
    return lines


def difference_rows(results: Sequence[Result], baseline: str) -> list[list[str]]:
    """Start − baseline for each share of the labels, paired over images and seeds; of one data set."""
    rows = []
    for fraction in sorted(unique(r.fraction for r in results)):
        same = [r for r in results if r.fraction == fraction]
        for start in unique(r.method for r in same if r.method != baseline):
            pair = [{r.seed: r for r in same if r.method == name} for name in (baseline, start)]
            seeds = sorted(pair[0].keys() & pair[1].keys())
            if not seeds:
                continue
            first, second = (runs([side[seed] for seed in seeds]) for side in pair)
            change = difference_intervals(first, second)["pooled"]
            words = verdict(change[SHOWN[0]])
            row = [f"{fraction:g} %", f"{start} − {baseline}", *(signed(change[name]) for name in SHOWN), words]
            rows.append(row)
    return rows


def summary_words(results: Sequence[Result], baseline: str = "random") -> list[str]:
    """One sentence a data set and start: where it helps, where not, and by how much."""
    lines = []
    for dataset in unique(r.dataset for r in results):
        here = [r for r in results if r.dataset == dataset]
        for start in unique(r.method for r in here if r.method != baseline):
            rows = difference_rows([r for r in here if r.method in (baseline, start)], baseline)
            parts = [f"{row[-1]} with {row[0]} of the labels ({SHOWN[0]} {row[2]})" for row in rows]
            if parts:
                lines.append(f"- {dataset}, `{start}` against `{baseline}`: {'; '.join(parts)}.")
    return lines


def draw_labels(results: Sequence[Result]) -> Figure:
    """Scores over the share of the labels: a row a data set, a column a score, a line a start with its interval."""
    datasets, starts = unique(r.dataset for r in results), unique(r.method for r in results)
    figure = Figure(figsize=(3.1 * len(SHOWN), 2.7 * len(datasets)), layout="constrained")
    axes = figure.subplots(len(datasets), len(SHOWN), squeeze=False, sharex=True)
    for i, dataset in enumerate(datasets):
        for color, start in zip(PALETTE, starts, strict=False):
            mine = [r for r in results if (r.dataset, r.method) == (dataset, start)]
            fractions = sorted(unique(r.fraction for r in mine))
            found = [score_intervals(runs([r for r in mine if r.fraction == f]))["pooled"] for f in fractions]
            for j, name in enumerate(SHOWN):
                values = [entry[name] for entry in found]
                axes[i, j].plot(fractions, [v.value for v in values], color=color, marker="o", ms=4, label=start)
                bounds = ([v.low for v in values], [v.high for v in values])
                axes[i, j].fill_between(fractions, *bounds, color=color, alpha=0.15, linewidth=0)
        for j, name in enumerate(SHOWN):
            _style(axes[i, j], f"{dataset}: {name}", "% of the labels" if i == len(datasets) - 1 else "")
            axes[i, j].set(xscale="log")
            ticks = sorted(unique(r.fraction for r in results))
            axes[i, j].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes[i, j].minorticks_off()
    axes[0, 0].set_ylabel("test split, pooled")
    axes[0, -1].legend(fontsize=8)
    return figure


def draw_training(results: Sequence[Result]) -> Figure:
    """MMA on the val split over training steps with all labels: a panel a data set, a line a start, dots for seeds."""
    full = [r for r in results if r.fraction == max(x.fraction for x in results)]
    datasets, starts = unique(r.dataset for r in full), unique(r.method for r in full)
    figure = Figure(figsize=(3.6 * len(datasets), 2.9), layout="constrained")
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for ax, dataset in zip(axes, datasets, strict=True):
        for color, start in zip(PALETTE, starts, strict=False):
            curves = [r.facts["curve"] for r in full if (r.dataset, r.method) == (dataset, start)]
            points = [(step, value) for curve in curves for step, value in curve]
            steps = sorted({step for step, _ in points})
            means = [float(np.mean([v for s, v in points if s == step])) for step in steps]
            ax.plot([s for s, _ in points], [v for _, v in points], ".", color=color, alpha=0.4)
            ax.plot(steps, means, color=color, marker="o", ms=4, label=start)
        _style(ax, dataset, "optimizer steps")
    axes[0].set_ylabel("MMA, val split")
    axes[-1].legend(fontsize=8)
    return figure


def _style(ax: Any, title: str, xlabel: str) -> None:
    ax.set(ylim=(0, 1), title=title, xlabel=xlabel)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
