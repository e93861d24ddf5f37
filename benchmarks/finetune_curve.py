"""Scores on the test splits against training length, from several starts, beside Otsu + watershed.

    python benchmarks/finetune_curve.py --config finetune/configs/vitt8_cpu.yaml --data DATA/nuclei DATA/phase \
        --steps 100 300 900 --init random stage1=runs/adapt/backbone.safetensors --out runs/curve [--seeds 0 1] \
        [key=value …]

Every start, length and seed is a training of its own with its whole schedule, validated and tuned on the val split as
the recipe says; the test split is only scored. Writes OUT/curve.json, curve.md and curve.png after each training.
Stop it at any time: the same command leaves out what is finished and continues what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.config import load
from dinocell.core.errors import ConfigError, run_main
from dinocell.core.files import atomic_write_text
from dinocell.evaluation import evaluate_model
from dinocell.evaluation.baseline import otsu_watershed
from dinocell.finetune import FinetuneConfig, run
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.models import ModelCard
from dinocell.report.charts import PALETTE
from dinocell.training.progress import read_metrics

SHOWN = ("MMA", "SEG", "DET", "AP50")
BASELINE = "Otsu + watershed"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: name and file of its starting weights ("" = random), optimizer steps, seed."""

    start: str
    weights: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Folder of the training."""
        return f"{self.start}_{self.steps}_seed{self.seed}"


class Baseline:
    """Otsu's threshold and a watershed, as something that segments."""

    def __init__(self) -> None:
        self.labels: NDArray[np.int32] = np.zeros((0, 0), np.int32)

    def segment(self, image: Any) -> Baseline:
        """Labels of the image at a path."""
        self.labels = otsu_watershed(to_gray(read_image(image)))
        return self


def main() -> None:
    """Run what is not finished yet, shortest trainings first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="finetune/configs/vitt8_cpu.yaml")
    parser.add_argument("--data", nargs="+", required=True, help="datasets with train and test splits")
    parser.add_argument("--steps", nargs="+", type=int, required=True, help="training lengths")
    parser.add_argument("--init", nargs="+", default=["random"], help="random, or NAME=BACKBONE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", required=True, type=Path)
    given, overrides = parser.parse_known_args()
    starts = dict(split_start(text) for text in given.init)
    cells = [
        Cell(start=start, weights=weights, steps=steps, seed=seed)
        for steps in sorted(given.steps)
        for seed in given.seeds
        for start, weights in starts.items()
    ]
    rows = baseline_rows(given.data, given.out)
    for cell in cells:
        rows += train_and_score(cell, given.config, given.data, given.out, overrides)
        write_results(rows, given.out, given.config, overrides)
    print((given.out / "curve.md").read_text(encoding="utf-8"))


def split_start(text: str) -> tuple[str, str]:
    """`random`, or NAME=FILE → name and file ("" for random)."""
    name, separator, path = text.partition("=")
    if not separator and name != "random":
        raise ConfigError(
            f"--init: {text!r} is neither `random` nor NAME=BACKBONE; for example stage1=backbone.safetensors"
        )
    if path and not Path(path).exists():
        raise ConfigError(f"--init: {path} does not exist; give the backbone that ssl/export_backbone.py wrote")
    return name, path


def train_and_score(
    cell: Cell, recipe: str, data: Sequence[str], out: Path, overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """Train one cell (or continue, or find it finished) and score it on every test split: one row a dataset."""
    done = out / cell.name / "cell.json"
    if done.is_file():
        return list(json.loads(done.read_text(encoding="utf-8")))
    own = [
        f"data.root={json.dumps(list(data))}",
        f"output_dir={out / cell.name}",
        f"backbone.weights={json.dumps(cell.weights)}",
        f"train.steps={cell.steps}",
        f"seed={cell.seed}",
    ]
    log.info(f"{cell.name}: training")
    folder = run(load(FinetuneConfig, recipe, [*overrides, *own])).folder
    facts = training_facts(folder)
    rows = []
    for root in data:
        summary = evaluate_model(folder / "model", root, split="test", out=folder / "test" / Path(root).name)
        rows.append({"start": cell.start, "steps": cell.steps, "seed": cell.seed, **facts, **scores(summary, root)})
    atomic_write_text(done, json.dumps(rows, indent=2) + "\n")
    return rows


def training_facts(folder: Path) -> dict[str, Any]:
    """Minutes trained, the step that was kept, the chosen decoding and the score on the val split."""
    card = ModelCard.read(folder / "model")
    train = read_metrics(folder / "metrics.jsonl", "train")
    return {
        "minutes": train[-1]["seconds"] / 60 if train else 0.0,
        "kept_step": card.training.step,
        "val": card.validation.mean,
        "tuning": card.validation.tuning,
    }


def baseline_rows(data: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """Scores of Otsu + watershed on every test split."""
    rows = []
    for root in data:
        file = out / "baseline" / Path(root).name / "evaluation.json"
        if not file.is_file():
            evaluate_model(Baseline(), root, split="test", out=file)
        rows.append({"start": BASELINE, **scores(json.loads(file.read_text(encoding="utf-8")), root)})
    return rows


def scores(summary: dict[str, Any], root: str) -> dict[str, Any]:
    """Pooled and macro scores of an evaluation's first tool."""
    block = next(iter(summary["predictions"].values()))
    return {
        "dataset": Path(root).name,
        "images": block["images"],
        "pooled": block["metrics_pooled"],
        "macro": block["metrics_macro"],
        "count_error": block["objects"]["count_error"],
    }


def write_results(rows: Sequence[dict[str, Any]], out: Path, recipe: str, overrides: Sequence[str]) -> None:
    """curve.json, curve.md and curve.png."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    content = {"recipe": recipe, "overrides": list(overrides), "machine": machine, "rows": list(rows)}
    atomic_write_text(out / "curve.json", json.dumps(content, indent=2) + "\n")
    atomic_write_text(out / "curve.md", markdown(rows))
    draw(rows).savefig(out / "curve.png", dpi=150)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table a dataset: pooled scores with macro means in brackets, means over the seeds."""
    lines: list[str] = []
    for dataset in unique(row["dataset"] for row in rows):
        members = [row for row in rows if row["dataset"] == dataset]
        lines += [f"**{dataset}**, test split, {members[0]['images']} images; pooled scores (macro means)", ""]
        lines += [f"| start | steps | minutes | {' | '.join(SHOWN)} |", "|---" * (3 + len(SHOWN)) + "|"]
        for start, steps in unique((row["start"], row.get("steps")) for row in members):
            same = [row for row in members if (row["start"], row.get("steps")) == (start, steps)]
            values = [f"{mean(same, 'pooled', name):.3f} ({mean(same, 'macro', name):.3f})" for name in SHOWN]
            minutes = f"{np.mean([row['minutes'] for row in same]):.1f}" if steps else ""
            seeds = f" ({len(same)} seeds)" if len(same) > 1 else ""
            lines.append(f"| {start}{seeds} | {steps or ''} | {minutes} | {' | '.join(values)} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """A row of charts for each dataset, a column for each score; one line a start, dots for the seeds."""
    datasets = unique(row["dataset"] for row in rows)
    starts = unique(row["start"] for row in rows if row["start"] != BASELINE)
    figure = Figure(figsize=(3.1 * len(SHOWN), 2.7 * len(datasets)), layout="constrained")
    axes = figure.subplots(len(datasets), len(SHOWN), squeeze=False, sharex=True)
    for i, dataset in enumerate(datasets):
        for j, metric in enumerate(SHOWN):
            ax = axes[i, j]
            here = [row for row in rows if row["dataset"] == dataset]
            for color, start in zip(PALETTE, starts, strict=False):
                own = [row for row in here if row["start"] == start]
                steps = sorted({row["steps"] for row in own})
                ax.plot([r["steps"] for r in own], [r["pooled"][metric] for r in own], ".", color=color, alpha=0.5)
                line = [mean([r for r in own if r["steps"] == s], "pooled", metric) for s in steps]
                ax.plot(steps, line, color=color, marker="o", markersize=4, label=start)
            level = mean([row for row in here if row["start"] == BASELINE], "pooled", metric)
            ax.axhline(level, color="#7d8590", linestyle="--", linewidth=1.2, label=BASELINE)
            ax.set(xscale="log", ylim=(0, 1), title=f"{dataset}: {metric}")
            ticks = sorted({row["steps"] for row in here if "steps" in row})
            ax.set_xticks(ticks, [str(s) for s in ticks])
            ax.minorticks_off()
            ax.set_xlabel("optimizer steps" if i == len(datasets) - 1 else "")
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("test split, pooled")
    axes[0, -1].legend(fontsize=8)
    return figure


def mean(rows: Sequence[dict[str, Any]], kind: str, metric: str) -> float:
    """Mean over rows (seeds) of one score."""
    return float(np.mean([row[kind][metric] for row in rows]))


def unique(values: Iterable[Any]) -> list[Any]:
    """Values in the order of their first appearance."""
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    run_main(main)
