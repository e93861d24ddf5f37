"""Report of a fine-tuning run: the course of training in words, curves, scores, predictions beside the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.config import to_yaml
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.validate.tuning import Tuning
from dinocell.finetune.validate.validator import SCORES, ImageResult, Validation
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.metrics import SemanticScores, pool_semantic
from dinocell.objectives import build_objective
from dinocell.report.html import Report
from dinocell.report.overlays import error_map, overlay, panel
from dinocell.training.progress import read_metrics

DEAD_SPREAD = 1e-3
FEWEST_FOR_HISTOGRAM = 5  # images; fewer are read off the panels


def diagnose(train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]], monitor: str) -> list[str]:
    """Say how the training went: flat loss, overfitting, dead maps, still improving.

    Args:
        train, val: rows of metrics.jsonl of the two splits.
    """
    sentences = []
    losses = np.array([row["loss"] for row in train if row.get("loss") is not None])
    if len(losses) >= 5:
        part = max(1, len(losses) // 5)
        first, last = float(losses[:part].mean()), float(losses[-part:].mean())
        if last > 0.95 * first:
            sentences.append(
                f"The training loss hardly fell ({first:.3f} to {last:.3f}): the learning rate is too low or too high, "
                "the training too short, or masks and images do not belong together."
            )
        else:
            sentences.append(f"The training loss fell from {first:.3f} to {last:.3f}.")
    sentences += _overfitting(val)
    sentences += _dead_maps(val)
    scores = [row[monitor] for row in val if row.get(monitor) is not None]
    if monitor != "loss" and len(scores) >= 3:
        best = int(np.argmax(scores))
        if best == len(scores) - 1 and scores[-1] > scores[-2] + 0.005:
            sentences.append(f"{monitor} was still rising at the end: longer training is likely to improve the model.")
        elif best < len(scores) - 1:
            sentences.append(f"{monitor} was best at step {val[best]['step']}; that model is the one in model/.")
    return sentences


def _overfitting(val: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(int(row["step"]), float(row["loss"])) for row in val if row.get("loss") is not None]
    if len(rows) < 4:
        return []
    losses = np.array([loss for _, loss in rows])
    lowest = int(losses.argmin())
    if lowest < 0.7 * len(losses) and losses[-1] > 1.1 * losses[lowest]:
        where = f"lowest at step {rows[lowest][0]} ({losses[lowest]:.3f}) and is {losses[-1]:.3f} at the end"
        return [f"The model overfits: the validation loss was {where}. More images or stronger augmentation help."]
    return ["The validation loss shows no overfitting."]


def _dead_maps(val: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(val) < 2:
        return []
    dead = [
        k.removeprefix("spread_")
        for k, v in val[-1].items()
        if k.startswith("spread_") and v is not None and v < DEAD_SPREAD
    ]
    if not dead:
        return []
    return [f"Dead map: {', '.join(dead)} is the same everywhere; lower the learning rate or change the seed."]


def write_report(
    run_dir: Path,
    config: FinetuneConfig,
    store: ImageStore,
    validation: Validation | None,
    notes: Sequence[str],
    tuning: Tuning | None,
) -> Path:
    """Write `report.html` from metrics.jsonl and the latest validation; `notes` are the data check's lines."""
    train, val = (
        read_metrics(run_dir / "metrics.jsonl", "train"),
        read_metrics(run_dir / "metrics.jsonl", "val"),
    )
    objective = build_objective(config.objective)
    report = Report("Fine-tuning", f"{run_dir.name} · {config.backbone.arch} · objective {objective.name}")
    if validation is not None and validation.results:
        report.figures({name: f"{validation.metrics()[name]:.3f}" for name in SCORES})
    report.heading("What happened")
    for sentence in diagnose(train, val, config.validate.monitor):
        report.text(sentence)
    report.heading("Curves")
    _curves(report, train, val)
    _by_dataset(report, run_dir, val, config.validate.monitor)
    if validation is not None and validation.results:
        _scores(report, validation, tuning)
        report.heading("Predictions on the val split")
        for result in validation.results:
            if result.prediction is not None:
                report.image(prediction_panel(store, result), _caption(result))
    report.heading("Data")
    for note in notes:
        report.text(note)
    report.heading("Recipe")
    report.code(to_yaml(config))
    return report.write(run_dir / "report.html")


def _curves(report: Report, train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]]) -> None:
    def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
        kept = [row for row in rows if row.get(name) is not None]
        return [float(row["step"]) for row in kept], [float(row[name]) for row in kept]

    if not train:
        report.text("No step was logged.")
        return
    losses = {"training": series(train, "loss"), "validation": series(val, "loss")}
    report.line_chart({k: v for k, v in losses.items() if v[0]}, "Loss", "optimizer step", "loss")
    if val:
        report.line_chart(
            {n: series(val, n) for n in SCORES}, "Scores on the val split", "optimizer step", "score (0 to 1)"
        )
    report.line_chart({"learning rate": series(train, "lr")}, "Learning rate", "optimizer step", "learning rate")


def _by_dataset(report: Report, run_dir: Path, val: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Tabulate the monitored score of each dataset at every validation, where there are several."""
    rows = {name: read_metrics(run_dir / "metrics.jsonl", f"val/{name}") for name in _dataset_names(run_dir)}
    if len(rows) < 2:
        return
    steps = [int(row["step"]) for row in val]
    values = {name: {int(row["step"]): row.get(monitor) for row in own} for name, own in rows.items()}
    report.table(
        [[step, *(values[name].get(step) for name in rows)] for step in steps],
        ["step", *rows],
        f"{monitor} on the val split of each dataset",
    )


def _dataset_names(run_dir: Path) -> list[str]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    splits = dict.fromkeys(str(json.loads(line)["split"]) for line in lines)
    return [split.removeprefix("val/") for split in splits if split.startswith("val/")]


def _scores(report: Report, validation: Validation, tuning: Tuning | None) -> None:
    report.heading("Scores of the model" if tuning else "Scores of the latest validation")
    groups = validation.by_dataset()
    rows: list[list[object]] = [[name, *(values[s] for s in SCORES), values["loss"]] for name, values in groups.items()]
    mean = validation.metrics()
    if len(groups) > 1:
        rows.append([validation.mean_name, *(mean[s] for s in SCORES), mean["loss"]])
    report.table(rows, ["dataset", *SCORES, "loss"])
    classes = [result.classes for result in validation.results if result.classes is not None]
    if classes:
        _classes(report, classes)
    if tuning is not None:
        _tuning(report, tuning)


def _classes(report: Report, images: Sequence[SemanticScores]) -> None:
    """Tabulate the scores of each class by pixel, pooled and as means over the images, and the spread of Dice."""
    report.heading("Classes by pixel")
    names = ("IoU", "Dice", "precision", "recall", "accuracy")
    binary = len(images[0].classes) == 2
    rows: list[list[object]] = []
    apart = [scores.per_class() for scores in images]
    for value, pooled in pool_semantic(images).per_class().items():
        title = ("background", "cell")[value] if binary else f"class {value}"
        rows.append([title, "pooled", *(pooled[name] for name in names)])
        rows.append([title, "mean over images", *(float(np.mean([a[value][name] for a in apart])) for name in names)])
    report.table(rows, ["class", "", *names])
    if len(images) >= FEWEST_FOR_HISTOGRAM:
        dice = [float(np.mean([a[value]["Dice"] for value in a if value > 0])) for a in apart]
        report.histogram({"images": dice}, "Dice of the images", "Dice, without background")


def _tuning(report: Report, tuning: Tuning) -> None:
    """Show the grid that was tried: for each pair of the first two settings, the best score over the others."""
    report.heading("Decoding")
    check = build_objective(tuning.recipe).cell_check
    unchecked = f"The curve of scores above is without the {check}, which is chosen only here. " if check else ""
    report.text(
        f"{tuning.sentence()}. {unchecked}Scores on the val split are a little optimistic after such a choice; the "
        "test split has no part in it."
    )
    first, second = tuning.fields[0], tuning.fields[1] if len(tuning.fields) > 1 else ""
    table: dict[float, dict[float, float]] = {}
    for setting, score in tuning.scores.items():
        row = table.setdefault(getattr(setting, first), {})
        column = getattr(setting, second) if second else 0.0
        row[column] = max(score, row.get(column, score))
    columns = sorted({column for row in table.values() for column in row})
    report.table(
        [[f"{value:g}", *(row.get(column, "") for column in columns)] for value, row in sorted(table.items())],
        [first, *(f"{second} {column:g}" if second else tuning.metric_name for column in columns)],
        f"On the val split: {tuning.metric_name}; each the best over the other settings tried",
    )


def prediction_panel(store: ImageStore, result: ImageResult) -> NDArray[np.uint8]:
    """Draw image, truth, prediction and error map of one result side by side, RGB uint8."""
    item = store.items[result.index]
    prepared = store.get(result.index)
    assert prepared is not None and result.prediction is not None
    image = to_gray(read_image(item.image))
    return panel(
        [
            image,
            overlay(image, prepared.truth),
            overlay(image, result.prediction),
            error_map(prepared.truth, result.prediction, image),
        ],
        ["image", "truth", "prediction", "errors"],
    )


def _caption(result: ImageResult) -> str:
    metrics = result.scores.metrics()
    values = ", ".join(f"{name} {metrics[name]:.3f}" for name in SCORES)
    return f"{result.dataset}/{result.stem}: {values}; green right, red too much, blue missed"
