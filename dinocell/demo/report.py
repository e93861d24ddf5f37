"""The demo's page: what was done, how well it went, and the commands that do the same on your own images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.core import log
from dinocell.curation.manifest import read_rows
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.report import Report, error_map, overlay, panel, pca_panel, to_rgb
from dinocell.training.progress import read_metrics

METRICS = ("MMA", "SEG", "DET", "AP50", "AP75", "PQ")
OWN_IMAGES = """\
dinocell curate MY_IMAGES --out crops
torchrun --nproc-per-node 1 ssl/train.py --config ssl/configs/vits8_cpu.yaml data.root=crops output_dir=runs/adapt
python ssl/export_backbone.py runs/adapt
python finetune/train.py --config finetune/configs/vits8_cpu.yaml data.root=MY_LABELLED output_dir=runs/finetune \\
    backbone.weights=runs/adapt/backbone.safetensors
python finetune/evaluate.py runs/finetune/model MY_LABELLED
dinocell segment MY_IMAGES --out segmented --model runs/finetune/model --save labels,overlay,csv"""


def write_report(out: Path, scores: Mapping[str, Any], seconds: float) -> Path:
    """Write `out/report.html` from what the demo's steps left in `out`; returns its path."""
    report = Report("DINOCell demo", "from unlabelled images to segmented cells, on the embedded synthetic sample")
    tools = scores["predictions"]
    names = list(tools)
    report.figures(
        {
            "held-out MMA": f"{tools[names[0]]['metrics']['MMA']:.3f}",
            f"MMA of {names[1]}": f"{tools[names[1]]['metrics']['MMA']:.3f}",
            "held-out images": scores["images"],
            "time": log.format_duration(seconds),
        }
    )
    _results(report, out, tools)
    _stage_one(report, out)
    _stage_two(report, out)
    report.heading("The same on your own images")
    report.code(OWN_IMAGES)
    return report.write(out / "report.html")


def _results(report: Report, out: Path, tools: Mapping[str, Any]) -> None:
    report.heading("Results on held-out images")
    shown = dict(zip(tools, ("DINOCell", *list(tools)[1:]), strict=True))
    rows = [[shown[name], *(entry["metrics"][metric] for metric in METRICS)] for name, entry in tools.items()]
    report.table(rows, ["method", *METRICS], "1 is perfect. MMA, SEG, DET: see docs/metrics.md.")
    predictions = [out / "evaluation" / "predictions" / folder for folder in _prediction_folders(out)]
    images = sorted((out / "sample" / "labelled" / "test" / "images").iterdir())
    for path in images[:: max(len(images) // 6, 1)][:6]:  # sorted by modality: two of each
        report.image(_comparison(path, predictions[0]), path.stem)
    report.text("In the last column green is right, red found by mistake, blue missed.")


def _prediction_folders(out: Path) -> list[str]:
    """The model's folder first: the baseline's name is not one a model folder can have."""
    folders = [p.name for p in (out / "evaluation" / "predictions").iterdir() if p.is_dir()]
    return sorted(folders, key=lambda name: name.startswith("Otsu"))


def _comparison(path: Path, predictions: Path) -> np.ndarray:
    truth = read_labels(path.parent.parent / "masks" / path.name)
    found = read_labels(next(predictions.rglob(f"{path.stem}_labels.tif")))
    image = to_rgb(to_gray(read_image(path)))
    tiles = [image, overlay(image, truth), overlay(image, found), error_map(truth, found, image)]
    return panel(tiles, ["image", "truth", "DINOCell", "errors"], columns=4, height=256)


def _stage_one(report: Report, out: Path) -> None:
    report.heading("Stage 1: learning from unlabelled crops")
    crops = [row["crop"] for row in read_rows(out / "crops" / "manifest.csv") if row["status"] == "kept"]
    pictures = [(out / "crops" / crop, Path(crop).stem) for crop in crops[:: max(len(crops) // 8, 1)][:8]]
    report.gallery(pictures, f"{len(crops)} crops chosen by Laplacian variance; some of them")
    rows = read_metrics(out / "pretrain" / "metrics.jsonl", "train")
    report.line_chart(_curves(rows, ("loss", "ibot")), "Stage 1: loss", "optimizer step", "loss")
    tokens = _before_and_after(out / "pretrain")
    if tokens is not None:
        images, before, after = tokens
        report.image(
            pca_panel(images, {"before stage 1": before, "after stage 1": after}),
            "First three principal components of the patch tokens",
        )
    report.text("All about this run: `pretrain/report.html`.")


def _before_and_after(run: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] | None:
    import torch

    from dinocell.models import load_backbone
    from dinocell.pretrain.report import patch_tokens, stored_features

    stored = stored_features(run)
    if stored is None:
        return None
    images, before = stored
    backbone = load_backbone(run / "backbone.safetensors", in_channels=1).eval()
    return images, before, [patch_tokens(backbone, image, torch.float32) for image in images]


def _stage_two(report: Report, out: Path) -> None:
    report.heading("Stage 2: learning from labels")
    metrics = out / "finetune" / "metrics.jsonl"
    rows = read_metrics(metrics, "train")
    report.line_chart(_curves(rows, ("loss",)), "Stage 2: loss", "optimizer step", "loss")
    report.line_chart(
        _curves(read_metrics(metrics, "val"), ("MMA", "SEG", "DET", "AP50")),
        "Stage 2: scores on the validation images",
        "optimizer step",
        "score",
    )
    report.text("All about this run: `finetune/report.html`; per-image scores: `evaluation/report.html`.")


def _curves(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, tuple[list[float], list[float]]]:
    points = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    return {name: ([x for x, _ in xy], [y for _, y in xy]) for name, xy in points.items() if xy}
