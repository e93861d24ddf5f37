"""The recipe of stage 2. Defaults are the paper's (§3.2–3.3); `finetune/configs/vitb8_flows.yaml` spells them out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dinocell.core.config import field
from dinocell.core.device import Precision
from dinocell.core.errors import ConfigError
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import DecoderConfig
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.placement import Fit
from dinocell.predict.views import VIEWS

Sampling = Literal["proportional", "balanced", "sqrt"]
BackboneTraining = Literal["all", "frozen", "last_k", "unfreeze_after"]
Monitor = Literal["MMA", "SEG", "DET", "AP50", "AP75", "PQ", "Dice", "mean", "loss"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images are trained on, and how they are drawn."""

    root: tuple[str, ...] = field(factory=tuple, doc="labelled dataset folder, or several: [a, b]")
    sampling: Sampling = field(
        "proportional", "share of each dataset: by its images, equal for all, or by the square root of its images"
    )
    shares: tuple[float, ...] = field(
        factory=tuple,
        doc="relative share of each dataset of root, in its order: [3, 1] draws three of four crops from the first; "
        "empty = what sampling says",
    )
    hard: float = field(
        0.0,
        "with start=: within its data set, an image is drawn in proportion to (1.05 - its MMA by that model) ** hard, "
        "so that those it does badly come more often; 0 = all alike, 1 = much",
    )
    fully_annotated: Literal["as_stated", "yes", "no"] = field(
        "as_stated", "whether every cell carries a label: what each dataset.yaml states, or the same answer for all"
    )
    ignore_weight: float = field(0.05, "weight of unlabelled pixels of datasets that are not fully annotated (§3.3.5)")
    max_diameter: float = field(
        0.0,
        "images whose median cell is larger are shrunk to this before anything else, so that a crop holds whole cells; "
        "the model then estimates each image's scale when it segments; 0 = never",
        unit="px",
    )
    min_diameter: float = field(
        0.0,
        "images whose median cell is smaller are enlarged to this, at most 4 times, as with max_diameter; 0 = never",
        unit="px",
    )
    label_pieces: bool = field(False, "number the separate pieces of each mask: for masks that are 0 and 255 only")
    cache_gb: float = field(
        8.0, "memory for preprocessed images, per process; the rest is read again when drawn", "GiB"
    )
    workers: int = field(-1, "threads that cut crops and make targets; -1 = one per spare core, 0 = none", "threads")
    check_images: int = field(64, "images looked at before the first step; 0 = none", "images")

    def __post_init__(self) -> None:
        _between("data.ignore_weight", self.ignore_weight, 0.0, 1.0)
        if self.shares and (len(self.shares) != len(self.root) or not all(0 < s < math.inf for s in self.shares)):
            raise ConfigError(
                f"data.shares: {list(self.shares)} for {len(self.root)} datasets; give one number above 0 for each"
            )
        _between("data.hard", self.hard, 0.0, 4.0)
        _at_least("data.max_diameter", self.max_diameter, 0.0)
        _at_least("data.min_diameter", self.min_diameter, 0.0)
        if self.max_diameter and self.min_diameter > self.max_diameter:
            raise ConfigError(
                f"data.min_diameter: {self.min_diameter:g} px is above data.max_diameter={self.max_diameter:g}; "
                "give at most that"
            )
        _at_least("data.cache_gb", self.cache_gb, 0.0)
        _at_least("data.workers", self.workers, -1)
        _at_least("data.check_images", self.check_images, 0)

    @property
    def rescales(self) -> bool:
        """Whether images are brought to a scale that depends on their cells."""
        return bool(self.max_diameter or self.min_diameter)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a crop. Brightness and inversion are the paper's (§3.3.4); the stronger ones start off."""

    positions: Literal["random", "grid"] = field(
        "random", "where crops are cut: anywhere, or one of the windows that inference would use"
    )
    flips: bool = field(True, "mirror in y and in x, each with probability 0.5; exact for flows")
    rotations: bool = field(True, "turn by a random multiple of 90 degrees; exact for flows")
    brightness: tuple[float, float] = field((0.95, 1.05), "range of the factor on the gray value (§3.3.4)")
    invert: float = field(0.5, "probability of inverting the image (§3.3.4)")
    scale: tuple[float, float] = field(
        (1.0, 1.0), "range of the zoom, drawn log-uniformly; targets are recomputed from the scaled labels"
    )
    gamma: tuple[float, float] = field((1.0, 1.0), "range of the exponent on the gray value, drawn log-uniformly")
    blur: float = field(0.0, "probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = field((0.5, 1.5), "range of the blur", "px")
    noise: float = field(0.0, "probability of added Gaussian noise")
    noise_std: tuple[float, float] = field((0.02, 0.15), "range of the noise, in standard deviations of the image")
    cell_focus: float = field(
        0.0, "probability of placing the crop on a cell, rare sizes as often as common ones, not anywhere at random"
    )

    def __post_init__(self) -> None:
        for name in ("invert", "blur", "noise", "cell_focus"):
            _between(f"augment.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("brightness", "scale", "gamma"):
            _range(f"augment.{name}", getattr(self, name), positive=True)
        for name in ("blur_sigma", "noise_std"):
            _range(f"augment.{name}", getattr(self, name), positive=False)
        if self.positions == "grid" and (self.scale != (1.0, 1.0) or self.cell_focus):
            raise ConfigError("augment.positions: grid fixes place and size of crops; set scale=[1,1] and cell_focus=0")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Where the vision transformer comes from and which part of it is trained."""

    weights: str = field("", "backbone file or folder (ours, DINOv2, DinoBloom, DINO); empty = random start")
    arch: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"] = field(
        "vit_base", "size of a random start; with weights, theirs is used"
    )
    depth: int | None = field(None, "blocks of a random start; null = the architecture's own", "blocks")
    patch_size: int = field(8, "side of a patch; weights of another patch size are resized (§3.2.2)", "px")
    in_channels: Literal[1, 3] = field(1, "input channels; RGB weights are folded to 1 channel exactly")
    patch_resize: Literal["pinv", "bicubic", "bicubic_scaled"] = field("pinv", "how the patch projection is resized")
    drop_path: float = field(0.0, "stochastic depth rate")
    layerscale_init: float = field(1e-5, "LayerScale of a random start (DINOv2: 1e-5; 1.0 learns sooner)")
    train: BackboneTraining = field(
        "all", "what is trained: everything, nothing, the last k blocks, or all after a delay"
    )
    last_k: int = field(4, "blocks trained with train=last_k (the final norm goes with them)", "blocks")
    unfreeze_after: float = field(0.1, "share of the training after which train=unfreeze_after thaws the backbone")
    cache_tokens: bool = field(
        False, "with train=frozen: compute the patch tokens of every window and turn once, before the first step"
    )
    cache_dir: str = field("", "folder of the cached tokens, which runs may share; empty = output_dir/tokens")
    cache_gb: float = field(
        20.0, "disk for cached tokens; windows beyond it go through the backbone in every step", "GiB"
    )
    layer_decay: float = field(1.0, "learning rate of a block = this ** (blocks above it + 1); 1 = one rate (§3.3.3)")

    def __post_init__(self) -> None:
        _at_least("backbone.patch_size", self.patch_size, 1)
        if self.depth is not None:
            _at_least("backbone.depth", self.depth, 1)
        _between("backbone.drop_path", self.drop_path, 0.0, 0.99)
        _between("backbone.layer_decay", self.layer_decay, 1e-3, 1.0)
        _between("backbone.unfreeze_after", self.unfreeze_after, 0.0, 1.0)
        _at_least("backbone.last_k", self.last_k, 1)
        _at_least("backbone.cache_gb", self.cache_gb, 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch and optimizer."""

    epochs: float = field(40.0, "passes over the training images, one crop an image (§3.3.3)", "epochs")
    steps: int = field(0, "optimizer steps; when above 0 it replaces epochs", "steps")
    minutes: float = field(0.0, "time budget: the schedule is shortened to end with it; 0 = none", "min")
    batch_size: int = field(8, "crops per optimizer step over all processes and micro-batches (§3.3.3)", "crops")
    accumulate: int = field(1, "micro-batches a step is split into, to save memory; the result is the same")
    auto_batch: bool = field(
        False, "find how many crops at a time fit the device and set accumulate accordingly; the result is the same"
    )
    lr: float = field(2e-5, "peak learning rate of AdamW (§3.3.3)")
    final_lr: float = field(0.0, "learning rate at the end of the cosine")
    warmup: float = field(0.2, "share of the training with a linear warm-up (§3.3.3: 8 of 40 epochs)")
    weight_decay: float = field(1e-4, "weight decay of AdamW (§3.3.3)")
    decoder_lr_multiplier: float = field(
        1.0, "learning rate of decoder and heads over the backbone's (§3.3.3: one rate)"
    )
    clip_gradient: float = field(0.0, "largest gradient norm; 0 = no clipping")
    ema: float = field(0.0, "decay per step of averaged weights, which are then validated and saved; 0 = off")
    log_every: int = field(10, "steps between two lines of the log", "steps")
    checkpoint_every: int = field(500, "steps between two checkpoints; also written at every validation", "steps")

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "checkpoint_every"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("epochs", "steps", "minutes", "final_lr", "weight_decay", "clip_gradient"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        if self.steps == 0 and self.epochs == 0:
            raise ConfigError("train.epochs: both epochs and steps are 0; set one of them")
        if self.lr <= 0:
            raise ConfigError(f"train.lr: {self.lr} is not positive; the paper uses 2e-5")
        if self.decoder_lr_multiplier <= 0:
            raise ConfigError(
                f"train.decoder_lr_multiplier: {self.decoder_lr_multiplier} is not positive; 1 = one rate"
            )
        _between("train.warmup", self.warmup, 0.0, 1.0)
        _between("train.ema", self.ema, 0.0, 0.99999)
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.accumulate: {self.accumulate} does not divide train.batch_size={self.batch_size}; "
                "choose a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Scores on whole images of the val split, with the windows inference uses."""

    times: int = field(20, "validations over the training, evenly spread; 0 = only one, at the end")
    monitor: Monitor = field("MMA", "what decides which model is the best one; mean = of MMA, SEG and DET")
    average: Literal["datasets", "images"] = field(
        "datasets", "several data sets: mean of their means, or mean over all images"
    )
    patience: int = field(0, "validations without a better score after which training stops; 0 = never", "validations")
    max_images: int = field(0, "images scored in each validation, evenly picked; 0 = all", "images")
    views: int = field(
        0,
        "1, 2, 4 or 8 turned and mirrored views whose maps are averaged, here and by the model folder that comes out; "
        "0 = as the model in start=, else 1",
    )
    panels: int = field(6, "images shown beside their truth in the report", "images")
    tune_decoding: bool = field(
        True,
        "choose thresholds, flow_error and min_size on the val split at the end; validations before that leave out "
        "the flow check",
    )

    def __post_init__(self) -> None:
        for name in ("times", "patience", "max_images", "panels"):
            _at_least(f"validate.{name}", getattr(self, name), 0)
        if self.views not in (0, *VIEWS):
            raise ConfigError(f"validate.views: {self.views}; choose one of 0, {', '.join(map(str, VIEWS))}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything `finetune/train.py` can be told."""

    output_dir: str = field("runs/finetune", "folder of this run; an interrupted run in it is continued")
    seed: int = field(0, "seed of crops, augmentation, dropout and random weights")
    start: str = field(
        "",
        "model folder or packaged model to go on from: its backbone (or backbone.weights), decoder, crop, "
        "preprocessing and objective replace the recipe's; empty = a new decoder",
    )
    device: str = field("auto", "auto | cpu | cuda | cuda:N | mps")
    precision: Precision = field("auto", "number format of matrix products")
    crop_size: int = field(512, "side of a training crop and of an inference window (§3.2.1)", "px")
    input_size: int = field(896, "side the crop is resized to for the backbone (§3.2.1); 0 = crop_size", "px")
    overlap: int = field(128, "overlap of neighbouring inference windows (§3.2.4)", "px")
    fit: Fit = field(
        "tile",
        "how an image meets the crop: windows at its own scale, or (semantic only) resized or padded to one crop",
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
        _at_least("crop_size", self.crop_size, 16)
        if not 0 <= self.overlap < self.crop_size:
            raise ConfigError(f"overlap: {self.overlap} px must be at least 0 and below crop_size={self.crop_size}")
        if self.network_size % self.backbone.patch_size:
            near = max(1, round(self.network_size / self.backbone.patch_size)) * self.backbone.patch_size
            raise ConfigError(
                f"input_size: {self.network_size} px is not a multiple of backbone.patch_size="
                f"{self.backbone.patch_size}; use {near}"
            )
        has_instances = build_objective(self.objective).has_instances
        if self.data.hard and not (self.start and has_instances):
            raise ConfigError(
                f"data.hard: {self.data.hard:g} goes by the cells that the model in start= finds; give start=, a model "
                "that finds cells, or set data.hard=0"
            )
        if self.fit != "tile" and has_instances:
            raise ConfigError(
                f"fit: {self.fit} is for objective.kind=semantic; cells of their own need the image's scale (fit=tile)"
            )
        if self.data.rescales and not has_instances:
            name = "max_diameter" if self.data.max_diameter else "min_diameter"
            raise ConfigError(f"data.{name}: objective.kind=semantic has classes, which have no diameter; set it to 0")
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
            raise ConfigError(f"backbone.cache_tokens: needs crops that do not change; set {' '.join(wrong)}")

    @property
    def network_size(self) -> int:
        """Side in pixels of what the backbone sees."""
        return self.input_size or self.crop_size


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"{name}: {value} is below {low:g}; give {low:g} or more")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value} is outside {low:g} to {high:g}")


def _range(name: str, pair: tuple[float, float], *, positive: bool) -> None:
    if len(pair) != 2 or not pair[0] <= pair[1] or (positive and pair[0] <= 0) or pair[0] < 0:
        raise ConfigError(f"{name}: {list(pair)} is not a range; write [low, high] with low ≤ high")
