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
VERDICTS = ("better", "worse", "no difference beyond chance")
FEW_IMAGES = 5  # a bootstrap over fewer images draws almost always the same ones: its interval is too narrow


def unique(values: Iterable[Any]) -> list[Any]:
    """Values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def cell(interval: Interval) -> str:
    """`0.612 [0.580, 0.640]`; the value alone where there was one image and one training to draw from."""
    if interval.high - interval.low < 1e-9:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def signed(interval: Interval) -> str:
    """`+0.031 [−0.004, +0.066]`, with true minus signs."""
    bounds = "" if interval.high - interval.low < 1e-9 else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.value:+.3f}{bounds}".replace("-", "−")


def heading(dataset: str, results: Sequence[Result]) -> str:
    """The dataset and how many test images it has."""
    count = len(results[0].images)
    return f"**{dataset}**, {count} test image{'s' if count > 1 else ''}"


def runs(results: Sequence[Result]) -> list[list[Any]]:
    """Scores [seed][image]: the results of one method by rising seed, their images in one order.

    Raises:
        ValueError: seeds were scored on different images.
    """
    ordered = sorted(results, key=lambda result: result.seed)
    if any(result.images != ordered[0].images for result in ordered):
        raise ValueError(f"{ordered[0].method}, {ordered[0].dataset}: seeds were scored on different images")
    return [result.scores for result in ordered]


def verdict(interval: Interval, images: int) -> str:
    """What an interval of a difference over so many images says, in a word or two."""
    if images < FEW_IMAGES:
        return "too few images"
    better, worse, neither = VERDICTS
    return better if interval.low > 0 else worse if interval.high < 0 else neither


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def peer_tables(results: Sequence[Result]) -> list[str]:
    """For each dataset the methods with their pooled and macro scores, seconds and versions."""
    lines: list[str] = []
    for dataset in unique(r.dataset for r in results):
        here = [r for r in results if r.dataset == dataset]
        lines += [heading(dataset, here), ""]
        for kind in KINDS:
            rows = []
            for method in unique(r.method for r in here):
                mine = [r for r in here if r.method == method]
                intervals = score_intervals(runs(mine))[kind]
                rows.append([method, *(cell(intervals[name]) for name in SHOWN)])
            lines += table(rows, [f"{kind} scores", *SHOWN])
        rows = [peer_facts([r for r in here if r.method == m]) for m in unique(r.method for r in here)]
        lines += table(rows, ["method", "trained for, s", "s per image", "runs", "version"])
        lines += peer_words(here)
    return lines


def peer_summary(results: Sequence[Result]) -> list[str]:
    """One table of all methods and datasets: pooled MMA, and the mean of the seconds per image."""
    datasets = unique(r.dataset for r in results)
    rows = []
    for method in unique(r.method for r in results):
        mine = [r for r in results if r.method == method]
        found = [
            score_intervals(runs(same))["pooled"] for d in datasets if (same := [r for r in mine if r.dataset == d])
        ]
        names = [d for d in datasets if any(r.dataset == d for r in mine)]
        values = {name: f"{entry[SHOWN[0]].value:.3f}" for name, entry in zip(names, found, strict=True)}
        speed = np.mean([r.facts["seconds_per_image"] for r in mine])
        rows.append([method, *(values.get(name, "") for name in datasets), f"{speed:.2f}"])
    return table(rows, [f"{SHOWN[0]}, pooled", *datasets, "s per image"])


def peer_facts(results: Sequence[Result]) -> list[str]:
    """Method, seconds of training, seconds per image, number of trainings, version."""
    facts = [r.facts for r in results]
    trained = np.mean([f["train_seconds"] for f in facts]) if "train_seconds" in facts[0] else None
    speed = np.mean([f["seconds_per_image"] for f in facts])
    shown = "see the model card" if trained is None else f"{trained:.0f}"
    return [results[0].method, shown, f"{speed:.2f}", str(len(results)), str(facts[0].get("version", ""))]


def ablation_tables(results: Sequence[Result], baseline: str = "random") -> list[str]:
    """For each dataset: scores by start and share of the labels, then differences from the baseline start."""
    lines: list[str] = []
    for dataset in unique(r.dataset for r in results):
        here = [r for r in results if r.dataset == dataset]
        lines += [heading(dataset, here), ""]
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


def differences(results: Sequence[Result], baseline: str) -> dict[tuple[float, str], dict[str, Interval]]:
    """(Share of the labels, start) → pooled score → start − baseline, paired over images and seeds; of one dataset."""
    found = {}
    for fraction in sorted(unique(r.fraction for r in results)):
        same = [r for r in results if r.fraction == fraction]
        for start in unique(r.method for r in same if r.method != baseline):
            pair = paired(same, baseline, start)
            if pair:
                found[fraction, start] = difference_intervals(*pair)["pooled"]
    return found


def paired(results: Sequence[Result], first: str, second: str) -> tuple[list[list[Any]], list[list[Any]]] | None:
    """`runs` of two methods on the seeds that both have; None where there is no such seed."""
    sides = [{r.seed: r for r in results if r.method == name} for name in (first, second)]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    one, other = (runs([side[seed] for seed in seeds]) for side in sides)
    return one, other


def difference_rows(results: Sequence[Result], baseline: str) -> list[list[str]]:
    """The table rows of `differences`, with what the first score says."""
    rows = []
    for (fraction, start), change in differences(results, baseline).items():
        row = [f"{fraction:g} %", f"{start} − {baseline}", *(signed(change[name]) for name in SHOWN)]
        rows.append([*row, verdict(change[SHOWN[0]], len(results[0].images))])
    return rows


# ---- words ----


def summary_words(results: Sequence[Result], baseline: str = "random") -> list[str]:
    """Where each start helps, where it does harm, where neither, and by how much; counted and in full."""
    lines = []
    for start in unique(r.method for r in results if r.method != baseline):
        both = [r for r in results if r.method in (baseline, start)]
        by_dataset = {name: [r for r in both if r.dataset == name] for name in unique(r.dataset for r in both)}
        enough = {name: mine for name, mine in by_dataset.items() if len(mine[0].images) >= FEW_IMAGES}
        changes = {
            (name, fraction): change[SHOWN[0]]
            for name, mine in enough.items()
            for (fraction, _), change in differences(mine, baseline).items()
        }
        lines += [*_verdict_words(start, baseline, changes), *_pace_words(both, start, baseline)]
        few = [name for name in by_dataset if name not in enough]
        if few:
            lines.append(f"- Not counted, having fewer than {FEW_IMAGES} test images: {', '.join(few)}.")
    return lines + _label_words([r for r in results if r.method == baseline])


def _label_words(results: Sequence[Result]) -> list[str]:
    """What more labels bring to one start; where it is nothing, no start can be said to save labels."""
    fractions = sorted(unique(r.fraction for r in results))
    if len(fractions) < 2:
        return []
    means, names = [], unique(r.dataset for r in results)
    for fraction in fractions:
        mine = [[r for r in results if (r.fraction, r.dataset) == (fraction, name)] for name in names]
        means.append(np.mean([score_intervals(runs(same))["pooled"][SHOWN[0]].value for same in mine if same]))
    shown = ", ".join(f"{mean:.3f} with {fraction:g} %" for mean, fraction in zip(means, fractions, strict=True))
    line = f"- `{results[0].method}` by labels (mean of the datasets): {shown}."
    if means[-1] <= means[0]:
        line += " More labels bring nothing in so few steps: whether a start saves labels cannot be seen here."
    return [line]


def _verdict_words(start: str, baseline: str, changes: dict[tuple[str, float], Interval]) -> list[str]:
    """How often better, worse or neither; the mean change by share of the labels; then every case by name."""
    if not changes:
        return [f"- `{start}` against `{baseline}`: no dataset has {FEW_IMAGES} test images, nothing can be said."]
    groups: dict[str, list[str]] = {word: [] for word in VERDICTS}
    for (name, fraction), change in changes.items():
        groups[verdict(change, FEW_IMAGES)].append(f"{name} with {fraction:g} % of the labels ({signed(change)})")
    counts = ", ".join(f"{word} in {len(cases)}" for word, cases in groups.items())
    compared = f"{len(changes)} comparisons (dataset × share of the labels)"
    by_chance = f"By chance alone about {0.05 * len(changes):.1f} of them would be better or worse."
    lines = [f"- `{start}` against `{baseline}`, {compared}: {counts}. {by_chance}"]
    means = []
    for fraction in sorted({fraction for _, fraction in changes}):
        mean = np.mean([change.value for (_, f), change in changes.items() if f == fraction])
        means.append(f"{mean:+.3f} with {fraction:g} %".replace("-", "−"))
    lines.append(f"- Mean change over these datasets: {', '.join(means)} of the labels.")
    return lines + [f"- {word.capitalize()}: {'; '.join(cases)}." for word, cases in groups.items() if cases]


def _pace_words(results: Sequence[Result], start: str, baseline: str) -> list[str]:
    """How far the start is ahead on the val split at the first and at the last look, with the largest share."""
    full = [r for r in results if r.fraction == max(x.fraction for x in results)]
    sides = [{(r.dataset, r.seed): dict(r.facts["curve"]) for r in full if r.method == m} for m in (baseline, start)]
    gaps: dict[int, list[float]] = {}
    for key in sides[0].keys() & sides[1].keys():
        for step in sides[0][key].keys() & sides[1][key].keys():
            gaps.setdefault(step, []).append(sides[1][key][step] - sides[0][key][step])
    if not gaps:
        return []
    looks = ", ".join(f"{np.mean(gaps[step]):+.3f} at step {step}".replace("-", "−") for step in sorted(gaps))
    return [f"- During training, `{start}` − `{baseline}` on the val split (mean of datasets and seeds): {looks}."]


def peer_words(results: Sequence[Result]) -> list[str]:
    """Each of our rows of one dataset against the best of the others, by pooled MMA, paired over the images."""
    ours = unique(r.method for r in results if r.method.startswith("DINOCell"))
    values = {
        name: score_intervals(runs([r for r in results if r.method == name]))["pooled"][SHOWN[0]].value
        for name in unique(r.method for r in results if r.method not in ours)
    }
    if not values:
        return []
    best = max(values, key=lambda name: values[name])
    lines = []
    for name in ours:
        pair = paired(results, best, name)
        if pair:
            change = difference_intervals(*pair)["pooled"][SHOWN[0]]
            words = verdict(change, len(results[0].images))
            lines.append(f"- {name} against {best}, the best of the others: {words} (MMA {signed(change)}).")
    return [*lines, ""] if lines else []


# ---- figures ----


def draw_labels(results: Sequence[Result]) -> Figure:
    """Scores over the share of the labels: a row a dataset, a column a score, a line a start with its interval."""
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
    """MMA on the val split over training steps with all labels: a panel a dataset, a line a start, dots for seeds."""
    full = [r for r in results if r.fraction == max(x.fraction for x in results)]
    datasets, starts = unique(r.dataset for r in full), unique(r.method for r in full)
    columns = min(len(datasets), 3)
    rows = -(-len(datasets) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for ax, dataset in zip(axes, datasets, strict=False):
        for color, start in zip(PALETTE, starts, strict=False):
            curves = [r.facts["curve"] for r in full if (r.dataset, r.method) == (dataset, start)]
            points = [(step, value) for curve in curves for step, value in curve]
            steps = sorted({step for step, _ in points})
            means = [float(np.mean([v for s, v in points if s == step])) for step in steps]
            ax.plot([s for s, _ in points], [v for _, v in points], ".", color=color, alpha=0.4)
            ax.plot(steps, means, color=color, marker="o", ms=4, label=start)
        _style(ax, dataset, "optimizer steps")
    for ax in axes[len(datasets) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel("MMA, val split")
    axes[0].legend(fontsize=8)
    return figure


def _style(ax: Any, title: str, xlabel: str) -> None:
    ax.set(ylim=(0, 1), title=title, xlabel=xlabel)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
