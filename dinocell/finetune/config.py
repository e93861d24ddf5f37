"""Settings of stage 2. Defaults are the paper's (§3.2–3.3); `vitb8_flows.yaml` lists most of them, `--help` all.

When a run is resumed, what it learns is fixed: start, data, crops, model, objective. Its length, learning rate and
validation may change and count from then on; device, workers, caches, log and checkpoints are neutral.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dinocell.core.device import Precision
from dinocell.core.fields import SettingError, Settings, field
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import DecoderConfig
from dinocell.models.folder import VIEWS, Fit
from dinocell.models.vit.vision_transformer import Arch
from dinocell.models.weights.resize import PatchResize
from dinocell.objectives import ObjectiveConfig, build_objective

Sampling = Literal["proportional", "balanced", "sqrt"]
BackboneTraining = Literal["all", "frozen", "last_k", "unfreeze_after"]
Monitor = Literal["MMA", "SEG", "DET", "AP50", "AP75", "PQ", "Dice", "mean", "loss"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Training images, and the rule by which they are drawn."""

    root: tuple[str, ...] = field(factory=tuple, doc="labelled dataset folder, or several: [a, b]")
    sampling: Sampling = field(
        "proportional", "share of each dataset: by its images, equal for all, or by the square root of its images"
    )
    shares: tuple[float, ...] = field(
        factory=tuple,
        doc="relative share of each dataset of root, in its order: [3, 1] draws three of four crops from the first; "
        "empty = what sampling says",
        above=0,
        advanced=True,
    )
    hard: float = field(
        0.0,
        "hard-example sampling, with start=: within its dataset, an image is drawn in proportion to (1.05 - its MMA "
        "by that model) ** hard; 0 = all alike, 1 = much",
        at_least=0,
        at_most=4,
        advanced=True,
    )
    fully_annotated: Literal["as_stated", "yes", "no"] = field(
        "as_stated", "every cell carries a label: as each dataset.yaml states, or the same answer for all"
    )
    ignore_weight: float = field(
        0.05,
        "weight of unlabelled pixels of datasets that are not fully annotated (§3.3.5)",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    max_diameter: float = field(
        0.0,
        "images whose median cell is larger are shrunk to this before anything else, so that a crop has whole cells; "
        "the model then estimates each image's scale when it segments; 0 = never",
        "px",
        at_least=0,
    )
    min_diameter: float = field(
        0.0,
        "images whose median cell is smaller are enlarged to this, at most 4 times, as with max_diameter; 0 = never",
        "px",
        at_least=0,
    )
    label_pieces: bool = field(
        False, "number the separate pieces of each mask: for masks that are 0 and 255 only", advanced=True
    )
    at_model_scale: bool = field(
        False,
        "the cells of all images have the size that the model in start= knows: no image is rescaled, and the result "
        "still estimates each image's scale when it segments",
        advanced=True,
    )
    cache_gb: float = field(
        8.0,
        "memory for preprocessed images, per process; the rest is read again when drawn",
        "GiB",
        at_least=0,
        resume="neutral",
    )
    workers: int = field(
        -1,
        "threads that cut crops and make targets; -1 = one per spare core, 0 = none",
        "threads",
        at_least=-1,
        resume="neutral",
    )
    check_images: int = field(
        64,
        "images looked at before the first step; 0 = none",
        "images",
        at_least=0,
        resume="free",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares and (len(self.shares) != len(self.root) or math.inf in self.shares):
            raise SettingError(
                "shares", f"{list(self.shares)} for {len(self.root)} datasets; give one number above 0 for each"
            )
        if self.at_model_scale and (self.max_diameter or self.min_diameter):
            raise SettingError("at_model_scale", "no image is rescaled then; leave max_diameter and min_diameter out")
        if self.max_diameter and self.min_diameter > self.max_diameter:
            raise SettingError(
                "min_diameter", f"must be at most max_diameter={self.max_diameter:g}, got {self.min_diameter:g}"
            )

    @property
    def rescales(self) -> bool:
        """True when images are shown at a scale that depends on their cells."""
        return bool(self.max_diameter or self.min_diameter or self.at_model_scale)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings):
    """Random changes of a crop. Brightness and inversion are the paper's (§3.3.4); the stronger ones start off."""

    positions: Literal["random", "grid"] = field(
        "random", "where crops are cut: anywhere, or one of the windows that inference would use", advanced=True
    )
    flips: bool = field(True, "mirror in y and in x, each with probability 0.5; exact for flows")
    rotations: bool = field(True, "turn by a random multiple of 90 degrees; exact for flows")
    brightness: tuple[float, float] = field(
        (0.95, 1.05), "range of the factor on the gray value (§3.3.4)", above=0, rising=True
    )
    invert: float = field(0.5, "probability of inverting the image (§3.3.4)", at_least=0, at_most=1)
    scale: tuple[float, float] = field(
        (1.0, 1.0),
        "range of the zoom, drawn log-uniformly; targets are recomputed from the scaled labels",
        above=0,
        rising=True,
    )
    gamma: tuple[float, float] = field(
        (1.0, 1.0), "range of the exponent on the gray value, drawn log-uniformly", above=0, rising=True, advanced=True
    )
    blur: float = field(0.0, "probability of a Gaussian blur", at_least=0, at_most=1, advanced=True)
    blur_sigma: tuple[float, float] = field(
        (0.5, 1.5), "range of the blur", "px", at_least=0, rising=True, advanced=True
    )
    noise: float = field(0.0, "probability of added Gaussian noise", at_least=0, at_most=1, advanced=True)
    noise_std: tuple[float, float] = field(
        (0.02, 0.15),
        "range of the noise, in standard deviations of the image",
        at_least=0,
        rising=True,
        advanced=True,
    )
    cell_focus: float = field(
        0.0,
        "probability of placing the crop on a cell, rare sizes as often as common ones, not anywhere at random",
        at_least=0,
        at_most=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "grid" and (self.scale != (1.0, 1.0) or self.cell_focus):
            raise SettingError("positions", "grid fixes place and size of crops; set scale=[1,1] and cell_focus=0")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Settings):
    """Source of the vision transformer, and the part of it that is trained."""

    weights: str = field("", "backbone file or folder (ours, DINOv2, DinoBloom, DINO); empty = random start")
    arch: Arch = field("vit_base", "size of a random start; with weights, theirs is used")
    depth: int | None = field(
        None, "blocks of a random start; null = the architecture's own", "blocks", at_least=1, advanced=True
    )
    patch_size: int = field(8, "side of a patch; weights of another patch size are resized (§3.2.2)", "px", at_least=1)
    in_channels: Literal[1, 3] = field(1, "input channels; RGB weights are folded to 1 channel exactly", advanced=True)
    patch_resize: PatchResize = field("pinv", "how the patch projection is resized", advanced=True)
    drop_path: float = field(0.0, "stochastic depth rate", at_least=0, below=1)
    layerscale_init: float = field(
        1e-5, "LayerScale of a random start (DINOv2: 1e-5; 1.0 learns sooner)", at_least=0, advanced=True
    )
    train: BackboneTraining = field(
        "all", "what is trained: everything, nothing, the last k blocks, or all after a delay", advanced=True
    )
    last_k: int = field(
        4,
        "blocks trained (the final norm goes with them)",
        "blocks",
        at_least=1,
        advanced=True,
        applies_to=("train=last_k",),
    )
    unfreeze_after: float = field(
        0.1,
        "share of the training after which the backbone thaws",
        at_least=0,
        at_most=1,
        advanced=True,
        applies_to=("train=unfreeze_after",),
    )
    cache_tokens: bool = field(
        False,
        "compute the patch tokens of every window and turn once, before the first step",
        resume="neutral",
        advanced=True,
        applies_to=("train=frozen",),
    )
    cache_dir: str = field(
        "",
        "folder of the cached tokens, which runs may share; empty = output_dir/tokens",
        resume="neutral",
        advanced=True,
        applies_to=("cache_tokens=true",),
    )
    cache_gb: float = field(
        20.0,
        "disk for cached tokens; windows beyond it go through the backbone in every step",
        "GiB",
        at_least=0,
        resume="neutral",
        advanced=True,
        applies_to=("cache_tokens=true",),
    )
    layer_decay: float = field(
        1.0,
        "learning rate of a block = this ** (blocks above it + 1); 1 = one rate (§3.3.3)",
        at_least=1e-3,
        at_most=1,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Length, batch and optimizer."""

    epochs: float = field(
        40.0,
        "passes over the training images, one crop per image (§3.3.3)",
        "epochs",
        at_least=0,
        resume="free",
    )
    steps: int = field(0, "optimizer steps; when above 0 it replaces epochs", "steps", at_least=0, resume="free")
    minutes: float = field(
        0.0,
        "time budget: the schedule is shortened to end with it; 0 = none",
        "min",
        at_least=0,
        resume="free",
    )
    batch_size: int = field(
        8, "crops per optimizer step over all processes and micro-batches (§3.3.3)", "crops", at_least=1
    )
    accumulate: int = field(
        1,
        "micro-batches a step is split into, to save memory; the result is the same",
        at_least=1,
        resume="neutral",
    )
    auto_batch: bool = field(
        False,
        "find how many crops at a time fit the device and set accumulate accordingly; the result is the same",
        resume="neutral",
    )
    lr: float = field(2e-5, "peak learning rate of AdamW (§3.3.3)", above=0, resume="free")
    final_lr: float = field(0.0, "learning rate at the end of the cosine", at_least=0, resume="free", advanced=True)
    warmup: float = field(
        0.2,
        "share of the training with a linear warm-up (§3.3.3: 8 of 40 epochs)",
        at_least=0,
        at_most=1,
        resume="free",
    )
    weight_decay: float = field(1e-4, "weight decay of AdamW (§3.3.3)", at_least=0, resume="free")
    decoder_lr_multiplier: float = field(
        1.0,
        "learning rate of decoder and heads over the backbone's (§3.3.3: one rate)",
        above=0,
        advanced=True,
    )
    clip_gradient: float = field(0.0, "largest gradient norm; 0 = no clipping", at_least=0, resume="free")
    ema: float = field(
        0.0,
        "decay per step of averaged weights, which are then validated and saved; 0 = off",
        at_least=0,
        below=1,
        advanced=True,
    )
    log_every: int = field(10, "steps between two lines of the log", "steps", at_least=1, resume="neutral")
    checkpoint_every: int = field(
        500,
        "steps between two checkpoints; also written at every validation",
        "steps",
        at_least=1,
        resume="neutral",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 0 and self.epochs == 0:
            raise SettingError("epochs", "both epochs and steps are 0; set one of them")
        if self.batch_size % self.accumulate:
            raise SettingError(
                "accumulate", f"{self.accumulate} does not divide batch_size={self.batch_size}; choose a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(Settings):
    """Scores on whole images of the val split, with the windows inference uses."""

    times: int = field(
        20,
        "validations over the training, evenly spread; 0 = only one, at the end",
        at_least=0,
        resume="free",
    )
    monitor: Monitor = field(
        "MMA", "what decides which model is the best one; mean = of MMA, SEG and DET", resume="free"
    )
    average: Literal["datasets", "images"] = field(
        "datasets",
        "several datasets: mean of their means, or mean over all images",
        resume="free",
        advanced=True,
    )
    patience: int = field(
        0,
        "validations without a better score after which training stops; 0 = never",
        "validations",
        at_least=0,
        resume="free",
    )
    max_images: int = field(
        0,
        "images scored in each validation, evenly picked; 0 = all",
        "images",
        at_least=0,
        resume="free",
    )
    views: int = field(
        0,
        "turned and mirrored views whose maps are averaged, here and by the model folder that comes out; 0 = as the "
        "model in start=, else 1",
        one_of=(0, *VIEWS),
        resume="free",
        advanced=True,
    )
    panels: int = field(
        6, "images shown beside their truth in the report", "images", at_least=0, resume="neutral", advanced=True
    )
    tune_decoding: bool = field(
        True,
        "choose thresholds, flow_error and min_size on the val split at the end; validations before that leave out "
        "the flow check",
        resume="free",
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Everything that decides a stage 2 run."""

    output_dir: str = field(
        "runs/finetune", "folder of this run; an interrupted run in it is continued", resume="neutral"
    )
    seed: int = field(0, "seed of crops, augmentation, dropout and random weights", at_least=0)
    start: str = field(
        "",
        "model folder or packaged model to start from: its backbone (or backbone.weights), decoder, crop, "
        "preprocessing and objective replace the recipe's; empty = a new decoder",
    )
    device: str = field("auto", "auto | cpu | cuda | cuda:N | mps", resume="neutral")
    precision: Precision = field("auto", "number format of matrix products", resume="free")
    crop_size: int = field(512, "side of a training crop and of an inference window (§3.2.1)", "px", at_least=16)
    input_size: int = field(
        896, "side the crop is resized to for the backbone (§3.2.1); 0 = crop_size", "px", at_least=0
    )
    overlap: int = field(128, "overlap of neighbouring inference windows (§3.2.4)", "px", at_least=0, advanced=True)
    fit: Fit = field(
        "tile",
        "how an image meets the crop: windows at its own scale, or (semantic only) resized or padded to one crop",
        advanced=True,
    )
    data: DataConfig = field(factory=DataConfig, doc="images")
    preprocess: PreprocessConfig = field(factory=PreprocessConfig, doc="gray values")
    augment: AugmentConfig = field(factory=AugmentConfig, doc="augmentation")
    backbone: BackboneConfig = field(factory=BackboneConfig, doc="encoder")
    decoder: DecoderConfig = field(factory=DecoderConfig, doc="decoder")
    objective: ObjectiveConfig = field(factory=ObjectiveConfig, doc="maps")
    train: TrainConfig = field(factory=TrainConfig, doc="optimization")
    validate: ValidateConfig = field(factory=ValidateConfig, doc="validation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.crop_size:
            raise SettingError("overlap", f"must be below crop_size={self.crop_size}, got {self.overlap}")
        if self.network_size % self.backbone.patch_size:
            near = max(1, round(self.network_size / self.backbone.patch_size)) * self.backbone.patch_size
            raise SettingError(
                "input_size",
                f"{self.network_size} px is not a multiple of backbone.patch_size={self.backbone.patch_size}; "
                f"use {near}",
            )
        has_instances = build_objective(self.objective).has_instances
        if self.data.hard and not (self.start and has_instances):
            raise SettingError(
                "data.hard",
                f"{self.data.hard:g} goes by the cells that the model in start= finds; give start=, a model that finds "
                "cells, or set data.hard=0",
            )
        if self.data.at_model_scale and not self.start:
            raise SettingError("data.at_model_scale", "refers to the model in start=; give start=, or leave it out")
        if self.fit != "tile" and has_instances:
            raise SettingError(
                "fit", f"{self.fit} is for objective.kind=semantic; separate cells need the image's scale (fit=tile)"
            )
        if self.data.rescales and not has_instances:
            name = next(n for n in ("max_diameter", "min_diameter", "at_model_scale") if getattr(self.data, n))
            raise SettingError(
                f"data.{name}", f"objective.kind=semantic has classes, which have no diameter; leave {name} out"
            )
        if self.backbone.cache_tokens:
            self._check_cacheable()

    def _check_cacheable(self) -> None:
        """Cached tokens need crops that come back unchanged, and a backbone that stays as it is."""
        needed = {
            "backbone.train": (self.backbone.train, "frozen"),
            "backbone.drop_path": (self.backbone.drop_path, 0.0),
            "augment.positions": (self.augment.positions, "grid"),
            "augment.brightness": (self.augment.brightness, (1.0, 1.0)),
            "augment.gamma": (self.augment.gamma, (1.0, 1.0)),
            **{f"augment.{name}": (getattr(self.augment, name), 0.0) for name in ("invert", "blur", "noise")},
        }
        wrong = [
            f"{name}={list(value) if isinstance(value, tuple) else value}".replace(" ", "")
            for name, (own, value) in needed.items()
            if own != value
        ]
        if wrong:
            raise SettingError("backbone.cache_tokens", f"needs crops that do not change; set {' '.join(wrong)}")

    @property
    def network_size(self) -> int:
        """Side in pixels of what the backbone sees."""
        return self.input_size or self.crop_size
