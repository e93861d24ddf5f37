"""report.html of a stage 1 run: loss curves, schedules, effective ranks, patch features before and after."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dinocell.core.config import to_yaml
from dinocell.core.device import autocast
from dinocell.core.errors import DataError
from dinocell.core.files import atomic_write_bytes
from dinocell.core.log import format_duration, format_number
from dinocell.models import VisionTransformer
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.data.augment import UInt8Array
from dinocell.pretrain.data.crops import read_gray
from dinocell.pretrain.method.student_teacher import network_input
from dinocell.pretrain.monitor.probes import central
from dinocell.report import Report, pca_panel
from dinocell.training.progress import read_metrics

_PICTURES = 4
_BEFORE = "features_before.npz"
_LOSSES = ("loss", "dino_local", "dino_global", "ibot", "koleo", "gram")

Tokens = npt.NDArray[np.float32]


@torch.no_grad()
def patch_tokens(backbone: VisionTransformer, image: UInt8Array, dtype: torch.dtype) -> Tokens:
    """Normalised patch tokens of a gray uint8 image (H, W), sides multiples of the patch -> float32 (h, w, D)."""
    device = next(backbone.parameters()).device
    crops = torch.from_numpy(image)[None, None].to(device)
    with autocast(device, dtype):
        tokens = backbone.forward_features(network_input(crops, backbone.in_channels))["x_norm_patchtokens"]
    grid = (image.shape[0] // backbone.patch_size, image.shape[1] // backbone.patch_size)
    return tokens[0].unflatten(0, grid).float().cpu().numpy()  # [h, w, D]


def report_images(paths: list[str], config: PretrainConfig) -> list[UInt8Array]:
    """Central crops of the global size from a few images spread over the data; unreadable ones are left out."""
    side, found = config.augment.global_size, []
    for index in np.linspace(0, len(paths) - 1, min(3 * _PICTURES, len(paths))).astype(int):
        try:
            gray = read_gray(paths[index], config.data.percentile_low, config.data.percentile_high)
        except DataError:
            continue
        found.append(central(gray, side))
        if len(found) == _PICTURES:
            break
    return found


def save_before(run: Path, backbone: VisionTransformer, images: list[UInt8Array], dtype: torch.dtype) -> None:
    """Keep the images and their features under the weights the run starts from."""
    tokens = np.stack([patch_tokens(backbone, image, dtype) for image in images]).astype(np.float16)
    content = io.BytesIO()
    np.savez_compressed(content, images=np.stack(images), tokens=tokens)
    atomic_write_bytes(run / _BEFORE, content.getvalue())


def stored_features(run: Path) -> tuple[list[UInt8Array], list[Tokens]] | None:
    """Images and patch tokens that `save_before` kept, or None if the run has none."""
    before = run / _BEFORE
    if not before.is_file():
        return None
    with np.load(before) as stored:
        return list(stored["images"]), [tokens.astype(np.float32) for tokens in stored["tokens"]]


def token_panel(run: Path, backbone: VisionTransformer, dtype: torch.dtype, name: str) -> npt.NDArray[np.uint8] | None:
    """The run's images with their patch tokens before the first step and now, in colour; None if it keeps none."""
    stored = stored_features(run)
    if stored is None:
        return None
    images, first = stored
    now = [patch_tokens(backbone, image, dtype) for image in images]
    return pca_panel(images, {"before": first, name: now})


def write_report(run: Path, config: PretrainConfig, backbone: VisionTransformer, dtype: torch.dtype) -> Path:
    """Write report.html from metrics.jsonl and the teacher's backbone; returns its path."""
    train, timing = read_metrics(run / "metrics.jsonl", "train"), read_metrics(run / "metrics.jsonl", "timing")
    model = config.model
    report = Report("Stage 1: continued pretraining", f"{model.arch}, patch {model.patch_size}, {run.name}")
    if train:
        report.figures(_summary(train, timing))
        report.heading("Losses")
        report.text("Each term is shown as it is optimised: weighted, so that the terms add up to `loss`.")
        report.line_chart(_series(train, _LOSSES), "Loss terms", "step", "loss")
        report.line_chart(_series(train, ("teacher_entropy",)), "Entropy of the teacher's targets", "step", "nats")
        report.heading("Features")
        report.text(
            "Effective rank (RankMe) of the teacher's features. A fall towards 1 means that all images or all patches "
            "get the same feature: the run has collapsed."
        )
        report.line_chart(_series(train, ("rankme_cls", "rankme_patch")), "Effective rank", "step", "dimensions")
    probes = read_metrics(run / "metrics.jsonl", "probe")
    if probes:
        report.text(
            "Probes of the teacher's features on fixed images, balanced accuracy. knn_source: does a crop's CLS token "
            "find crops of its source? knn_patch, probe_patch: do patch tokens distinguish cells from background, by "
            "nearest neighbours and by a linear classifier?"
        )
        names = [name for name in probes[-1] if name not in ("step", "split")]
        report.line_chart(_series(probes, names), "Probes", "step", "balanced accuracy")
        report.text(verdict(probes))
    panel = token_panel(run, backbone, dtype, "after")
    if panel is not None:
        report.text("Patch tokens of the teacher, coloured by their first three principal components.")
        report.image(panel, "Images, and their features before and after")
    if train:
        report.heading("Schedules")
        report.line_chart(_series(train, ("lr",)), "Learning rate", "step", "learning rate")
        norms = [name for name in train[-1] if name.startswith("grad_")]
        report.line_chart(_series(train, norms), "Gradient norms before clipping", "step", "norm", log_y=True)
    report.heading("Settings")
    report.code(to_yaml(config))
    return report.write(run / "report.html")


def verdict(probes: list[dict[str, Any]]) -> str:
    """Summary of the probes, one sentence each; those that the run had at its start and at its end."""
    sentences = []
    for name in (key for key in probes[0] if key in probes[-1] and key not in ("step", "split")):
        first, last = probes[0][name], probes[-1][name]
        best = max((row for row in probes if name in row), key=lambda row: row[name])
        change = "rose" if last > first + 0.01 else "fell" if last < first - 0.01 else "stayed"
        sentence = f"{name} {change}: {first:.3f} at step {probes[0]['step']}, {last:.3f} at step {probes[-1]['step']}"
        if best[name] > max(first, last) + 0.01:
            sentence += f", highest {best[name]:.3f} at step {best['step']}: the run went past its best features"
        sentences.append(sentence + ".")
    return " ".join(sentences)


def _series(rows: list[dict[str, Any]], names: Any) -> dict[str, tuple[list[int], list[float]]]:
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            series[name] = ([step for step, _ in points], [value for _, value in points])
    return series


def _summary(train: list[dict[str, Any]], timing: list[dict[str, Any]]) -> dict[str, object]:
    last = train[-1]
    figures: dict[str, object] = {"steps": last["step"], "loss": last["loss"]}
    figures |= {name.replace("_", " "): last[name] for name in ("rankme_cls", "rankme_patch") if name in last}
    figures["peak learning rate"] = format_number(max(row["lr"] for row in train))
    if timing:
        rates = sorted(row["images_per_second"] for row in timing)
        figures["images/s"] = rates[len(rates) // 2]
        figures["time"] = format_duration(sum(row["seconds"] for row in timing))
    figures["skipped steps"] = int(last["skipped_steps"])
    figures["unreadable images"] = int(last["unreadable_images"])
    return figures
