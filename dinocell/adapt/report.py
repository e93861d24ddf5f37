"""report.html of an adaptation: the verdict, the numbers, patch features and segmentations before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinocell.adapt.config import AdaptConfig
from dinocell.adapt.image_scale import AsItIs
from dinocell.adapt.judge import SHOWN, Segments, Stability, Verdict, table
from dinocell.core.config import to_yaml
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import ImageScores
from dinocell.models import load_backbone
from dinocell.models.packaged import find_model
from dinocell.pretrain.report import patch_tokens, stored_features, verdict
from dinocell.report import Report, error_map, overlay, panel, pca_panel, to_rgb
from dinocell.segmentation import load_model
from dinocell.training.progress import read_metrics

PICTURES = 4
NAMES = {
    "original": "original model",
    "adapted": "adapted: stage 1 on your images",
    "control": "control: the decoder alone, without stage 1",
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page shows; see `dinocell.adapt.adaptation.Judgement`."""

    out: Path
    config: AdaptConfig
    verdict: Verdict
    scores: Mapping[str, list[ImageScores]]
    stability: Mapping[str, Stability]
    images: list[Path]
    best_step: int


def write_report(found: Findings) -> Path:
    """Write OUT/report.html; returns its path."""
    report = Report("Adaptation", f"{Path(found.config.start).name} to the images in {', '.join(found.config.images)}")
    helped = {True: "yes", False: "no", None: "is not decided"}[found.verdict.helped]
    report.figures({"model to use": found.verdict.choice, "did stage 1 help": helped, "best step": found.best_step})
    report.text(" ".join(found.verdict.sentences))
    size = json.loads((found.out / "scale.json").read_text(encoding="utf-8"))
    if size["scale"] != 1:
        cells = f"cells of about {size['diameter']:.0f} px" if size["diameter"] else "cells of unknown size"
        report.text(f"Images with {cells}: scaled by {size['scale']:.3g} to the size of cells that the model knows.")
    report.code(f"dinocell segment MY_IMAGES --out segmented --model {found.out / 'model'}")
    _numbers(report, found)
    _features(report, found)
    _segmentations(report, found)
    report.heading("Settings")
    report.code(to_yaml(found.config))
    return report.write(found.out / "report.html")


def _numbers(report: Report, found: Findings) -> None:
    if found.scores:
        report.heading("Scores on your labels")
        rows = table({NAMES[name]: scores for name, scores in found.scores.items()})
        note = f"Pooled over {len(found.images)} images with 95 % bootstrap intervals over the images. 1 is perfect."
        report.table(rows, ["model", *SHOWN], note)
    if found.stability:
        report.heading("Stability")
        rows = table({NAMES[name]: list(values.changes) for name, values in found.stability.items()})
        report.table(rows, ["model", *SHOWN], "Labels under small changes of the image against the model's own labels.")
        report.text(
            "The image is turned, mirrored, made darker in its mid-tones, a little noisier and a little softer: no "
            "cell moves, so a model that is at home in these images gives the same cells. A model that is wrong can be "
            "steady too: this is not a score."
        )


def _features(report: Report, found: Findings) -> None:
    run = found.out / "stage1"
    report.heading("What stage 1 did to the features")
    probes = read_metrics(run / "metrics.jsonl", "probe")
    if probes:
        names = [name for name in probes[0] if name not in ("step", "split")]
        series: dict[str, tuple[list[float], list[float]]] = {
            name: ([row["step"] for row in probes], [row[name] for row in probes]) for name in names
        }
        report.line_chart(series, "Probes of the features", "step", "balanced accuracy")
        source = "your labels" if found.config.labels else "the original model's own segmentation"
        report.text(
            f"{verdict(probes)} knn_patch and probe_patch: do patch features separate cells from ground, by {source}, "
            "with nearest neighbours and with a linear classifier?"
        )
    stored = stored_features(run)
    if stored is not None:
        images, before = stored
        backbone = load_backbone(run / "backbone.safetensors", in_channels=None).eval()
        words = "First three principal components of the patch features"
        if found.best_step:
            after = [patch_tokens(backbone, image, torch.float32) for image in images]
            report.image(
                pca_panel(images, {"before": before, "after": after}), f"{words}, before and at step {found.best_step}"
            )
        else:
            report.image(pca_panel(images, {"as they were": before}), f"{words}, which stay as they were")
    report.text("All about stage 1: `stage1/report.html`; about the decoder, if it was trained: `aligned/report.html`.")


def _segmentations(report: Report, found: Findings) -> None:
    if not found.images:
        return
    places = {"before": find_model(found.config.start)}
    if found.best_step:
        places["after"] = found.out / "adapted"
    elif found.config.labels:
        places["after"] = found.out / "control" / "model"
    report.heading("Segmentations before and after" if "after" in places else "What the model sees in your images")
    loaded = {name: load_model(path, device=found.config.finetune.device) for name, path in places.items()}
    # Crops without labels are at the model's scale already.
    models: dict[str, Segments] = {n: m if found.config.labels else AsItIs(m) for n, m in loaded.items()}
    chosen = found.images[:: max(len(found.images) // PICTURES, 1)][:PICTURES]
    for path in chosen:
        report.image(_comparison(path, models, bool(found.config.labels)), path.stem)
    if found.config.labels:
        report.text("In the last column green is right, red found by mistake, blue missed by the later model.")


def _comparison(path: Path, models: Mapping[str, Segments], labelled: bool) -> NDArray[np.uint8]:
    """The image, each model's cells in it, and the errors of the last one."""
    image = to_rgb(to_gray(read_image(path)))
    found = {name: model.segment(path).labels for name, model in models.items()}
    tiles: list[NDArray[Any]] = [image, *(overlay(image, labels) for labels in found.values())]
    titles = ["image", *found]
    if labelled:
        masks = path.parent.parent / "masks"
        truth = read_labels(next(file for file in sorted(masks.iterdir()) if file.stem == path.stem))
        tiles.append(error_map(truth, found[titles[-1]], image))
        titles.append("errors")
    return panel(tiles, titles, columns=len(tiles), height=256)
