"""Settings of an adaptation, and the safe values it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinocell.core.config import load
from dinocell.core.errors import ConfigError
from dinocell.core.fields import Settings, field
from dinocell.curation import CurateConfig
from dinocell.finetune import FinetuneConfig
from dinocell.models import ModelCard
from dinocell.pretrain import PretrainConfig

STEPS = 300
CROPS = 256  # as many crops as a few hundred steps can make use of
GLOBAL_PATCHES, LOCAL_PATCHES = 16, 8  # side of the crops of stage 1
GLOBAL_SPAN, LOCAL_SPAN = (0.6, 2.5), (0.6, 2.5)  # of the area that shows cells at the model's own scale


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(Settings):
    """From a model and a folder of unlabelled images to a model adapted to them, if that helps."""

    images: tuple[str, ...] = field(doc="unlabelled image files, folders (recursively) or patterns")
    start: str = field(doc="model folder or packaged model to adapt")
    out: str = field(doc="folder for everything; an interrupted adaptation in it is continued")
    labels: tuple[str, ...] = field(
        (), "labelled datasets of the same microscope: train the decoder, and judge by their test (or val) split"
    )
    control: bool = field(
        True,
        "with labels: also train the unadapted model on them, to separate what stage 1 did from what the labels did",
    )
    agrees: float = field(
        0.95,
        "without labels: leave the decoder as it is if its labels with the adapted backbone agree with the original's "
        "to this MMA",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    diameter: float = field(
        0.0, "cells' diameter in the images; 0 = estimated once, by models that rescale their images", "px", at_least=0
    )
    check_images: int = field(8, "images compared before and after where there are no labels", "images", at_least=1)
    curate: CurateConfig = field(factory=lambda: CurateConfig(sources=(), out=""), doc="crops of the images")
    pretrain: PretrainConfig = field(factory=lambda: PretrainConfig(output_dir=""), doc="stage 1")
    finetune: FinetuneConfig = field(factory=FinetuneConfig, doc="re-alignment of the decoder")


def make_config(
    images: Sequence[str],
    start: str,
    out: str | Path,
    *,
    card: ModelCard,
    count: int,
    labels: Sequence[str] = (),
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> AdaptConfig:
    """Safe settings for this model and this many images, changed by `key=value` overrides.

    Args:
        images, start, out, labels: as the fields of `AdaptConfig`.
        card: of the model.
        count: number of image files.
        steps: longest stage 1, optimizer steps; every schedule is a share of it.

    Raises:
        ConfigError: a setting is impossible or unknown.
    """
    if steps < 1:
        raise ConfigError(f"--steps: must be at least 1, got {steps}")
    folder = Path(out)
    base = {
        "images": list(images),
        "start": start,
        "out": str(out),
        "labels": list(labels),
        "curate": _curate(images, folder / "crops", card, count),
        "pretrain": _pretrain(folder, card, labels, steps, seed, device),
        "finetune": _finetune(folder, start, card, labels, seed, device),
    }
    return load(AdaptConfig, None, overrides, base=base)


def crop_side(card: ModelCard) -> int:
    """Side of a curated crop, px: what the model sees at once, and enough for stage 1's largest crops."""
    scale = card.input_size / card.crop_size
    return max(card.crop_size, round(1.5 * GLOBAL_PATCHES * card.backbone.patch_size / scale))


def _curate(images: Sequence[str], out: Path, card: ModelCard, count: int) -> dict[str, Any]:
    per_image = min(max(-(-CROPS // max(count, 1)), 1), 16)
    return {"sources": list(images), "out": str(out), "size": crop_side(card), "crops_per_image": per_image}


def _pretrain(out: Path, card: ModelCard, labels: Sequence[str], steps: int, seed: int, device: str) -> dict[str, Any]:
    patch = card.backbone.patch_size
    large, small = GLOBAL_PATCHES * patch, LOCAL_PATCHES * patch
    return {
        "output_dir": str(out / "stage1"),
        "weights": str(out / "start" / "backbone.safetensors"),
        "seed": seed,
        "device": device,
        "model": {**asdict(card.backbone), "drop_path": 0.0},
        "data": {"root": [str(out / "crops")], "workers": 1},
        "augment": {
            "global_size": large,
            "local_size": small,
            "local_crops": 4,
            **crop_spans(card, crop_side(card)),
            "vertical_flip": 0.5,
            "rotate90": True,
        },
        "dino_head": {"prototypes": 1024, "hidden": 1024, "bottleneck": 256},
        "ibot_head": {"prototypes": 1024, "hidden": 1024, "bottleneck": 256},
        "loss": {"gram_weight": 1.0},
        "teacher": {"momentum": 0.99, "temperature_warmup_epochs": 0.3},
        "optim": {
            "epochs": 1,
            "epoch_steps": steps,
            "batch_size": 8,
            "base_lr": 2e-5,
            "lr_rule": "none",
            "final_lr": 1e-6,
            "warmup_epochs": 0.3,
            "layer_decay": 0.9,
            "weight_decay_end": 0.04,
            "freeze_last_layer_epochs": 0.1,
            "freeze_backbone_steps": steps // 5,
        },
        "monitor": {
            "every": max(steps // 10, 1),
            "labelled": list(labels) or [str(out / "pseudo")],
            "best_by": "knn_patch",
            "patience": 5,  # two tests fall into the steps that train only the heads
        },
        "log_every": max(min(10, steps // 10), 1),
        "checkpoint_every": max(min(25, steps // 4), 1),
    }


def crop_spans(card: ModelCard, side: float) -> dict[str, list[float]]:
    """`global_scale` and `local_scale` of stage 1 for curated crops of `side` px at the scale of the model's window."""
    patch = card.backbone.patch_size
    side *= card.input_size / card.crop_size
    return {
        "global_scale": _span(GLOBAL_PATCHES * patch / side, GLOBAL_SPAN),
        "local_scale": _span(LOCAL_PATCHES * patch / side, LOCAL_SPAN),
    }


def _span(side_share: float, span: tuple[float, float]) -> list[float]:
    """Areas around that of a crop at the model's own scale, as shares of the image."""
    low, high = (min(factor * side_share**2, 1.0) for factor in span)
    return [round(min(low, 0.5), 4), round(high, 4)]


def _finetune(out: Path, start: str, card: ModelCard, labels: Sequence[str], seed: int, device: str) -> dict[str, Any]:
    data: dict[str, Any] = {"root": list(labels) or [str(out / "pseudo")]}
    if card.rescales and card.training.diameters is not None and not labels:
        data["at_model_scale"] = True  # the crops with the model's own labels were brought to its scale
    return {
        "output_dir": str(out / "aligned"),
        "start": start,
        "seed": seed,
        "device": device,
        "data": data,
        "backbone": {"weights": str(out / "stage1" / "backbone.safetensors"), "train": "frozen"},
        "augment": {"invert": 0.0, "scale": [0.85, 1.18], "cell_focus": 0.5},
        "train": {
            "steps": 200,
            "batch_size": 8,
            "lr": 1e-4,
            "final_lr": 1e-6,
            "warmup": 0.05,
            "weight_decay": 0.01,
            "clip_gradient": 1.0,
            "ema": 0.98,
            "checkpoint_every": 50,
        },
        "validate": {"times": 2, "monitor": "mean", "panels": 2, "max_images": 16, "tune_decoding": bool(labels)},
    }
