"""Settings of stage 1. The defaults are the paper's (section 3.3) and, where it is silent, DINOv2's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinocell.core.config import field
from dinocell.core.device import Precision
from dinocell.core.errors import ConfigError
from dinocell.models import ViTConfig
from dinocell.training.schedules import LearningRateRule

Centering = Literal["sinkhorn", "softmax"]
MonitorName = Literal["auto", "none", "probe_patch", "knn_patch", "knn_source", "rankme_patch", "rankme_cls"]
Parallel = Literal["ddp", "fsdp2"]
PatchResize = Literal["pinv", "bicubic", "bicubic_scaled"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the crops."""

    root: tuple[str, ...] = field(doc="folders, files or patterns of images; the DIR of `dinocell curate` is one")
    workers: int = field(2, "data loading processes per rank; 0 loads in the training process")
    prefetch: int = field(2, "batches each worker keeps ready", "batches")
    percentile_low: float = field(0.1, "an image that is not 8-bit is stretched from this percentile …", "%")
    percentile_high: float = field(99.9, "… to this one", "%")

    def __post_init__(self) -> None:
        _require(self.workers >= 0, f"data.workers: must be 0 or more, is {self.workers}")
        _require(self.prefetch >= 1, f"data.prefetch: must be 1 or more, is {self.prefetch}")
        _require(
            0 <= self.percentile_low < self.percentile_high <= 100,
            f"data.percentile_low, percentile_high: must rise within 0–100, are {self.percentile_low} and "
            f"{self.percentile_high}",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Multi-crop augmentation (paper section 3.3.4)."""

    global_size: int = field(512, "side of the 2 global crops, a multiple of the patch size", "px")
    local_size: int = field(208, "side of the local crops, a multiple of the patch size", "px")
    local_crops: int = field(8, "local crops per image; 0 drops the global-local DINO term")
    global_scale: tuple[float, float] = field((0.32, 1.0), "area of a global crop, share of the image")
    local_scale: tuple[float, float] = field((0.05, 0.32), "area of a local crop, share of the image")
    aspect: tuple[float, float] = field((0.75, 4 / 3), "width / height of a crop before resizing")
    horizontal_flip: float = field(0.5, "probability of mirroring left-right")
    vertical_flip: float = field(0.0, "probability of mirroring up-down")
    rotate90: bool = field(False, "turn each crop by a random multiple of 90 degrees")
    jitter_probability: float = field(0.8, "probability of the brightness and contrast jitter")
    brightness: float = field(0.4, "brightness factor from [1 − b, 1 + b]")
    contrast: float = field(0.4, "contrast factor from [1 − c, 1 + c]")
    blur_probability: float = field(0.01, "probability of a Gaussian blur (the published run in effect used 0.99)")
    blur_sigma: tuple[float, float] = field((0.1, 2.0), "standard deviation of the blur", "px")
    solarize_probability: float = field(0.1, "probability of inverting values >= 128 in the second global crop")

    def __post_init__(self) -> None:
        _require(self.local_crops >= 0, f"augment.local_crops: must be 0 or more, is {self.local_crops}")
        for name in ("horizontal_flip", "vertical_flip", "jitter_probability", "blur_probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"augment.{name}: is a probability in 0–1, is {value}")
        _require(
            0 <= self.solarize_probability <= 1,
            f"augment.solarize_probability: is a probability in 0–1, is {self.solarize_probability}",
        )
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, f"augment.{name}: two shares 0 < low <= high <= 1, is [{low}, {high}]")
        for name in ("aspect", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high, f"augment.{name}: two numbers 0 < low <= high, is [{low}, {high}]")
        for name in ("brightness", "contrast"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"augment.{name}: must be in 0–1, is {value}")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Patch masking for iBOT."""

    probability: float = field(0.5, "share of the global crops that are masked")
    ratio: tuple[float, float] = field((0.1, 0.5), "smallest and largest share of masked patches in a masked crop")

    def __post_init__(self) -> None:
        low, high = self.ratio
        _require(0 <= self.probability <= 1, f"mask.probability: must be in 0–1, is {self.probability}")
        _require(0 < low <= high <= 1, f"mask.ratio: two shares 0 < low <= high <= 1, is [{low}, {high}]")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A projection head: backbone width → hidden → hidden → bottleneck → prototypes."""

    prototypes: int = field(8192, "prototypes K")
    hidden: int = field(2048, "width of the two hidden layers")
    bottleneck: int = field(384, "width of the normalised layer before the prototypes")

    def __post_init__(self) -> None:
        for name in ("prototypes", "hidden", "bottleneck"):
            value = getattr(self, name)
            _require(value >= 1, f"head.{name}: must be 1 or more, is {value}")


def _ibot_head() -> HeadConfig:
    return HeadConfig(bottleneck=256)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and temperatures of the three losses."""

    dino_weight: float = field(1.0, "weight of the two DINO terms")
    ibot_weight: float = field(1.0, "weight of iBOT")
    koleo_weight: float = field(0.1, "weight of KoLeo, summed over the 2 global crops")
    koleo_all_ranks: bool = field(
        False, "KoLeo looks for neighbours on all ranks: better when the batch per GPU is small"
    )
    gram_weight: float = field(0.0, "weight of Gram anchoring: patch similarities stay near the initial backbone's")
    student_temperature: float = field(0.1, "temperature of the student's softmax")
    centering: Centering = field("sinkhorn", "how teacher scores become targets")

    def __post_init__(self) -> None:
        for name in ("dino_weight", "ibot_weight", "koleo_weight", "gram_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"loss.{name}: must be 0 or more, is {value}")
        _require(self.student_temperature > 0, f"loss.student_temperature: must be > 0, is {self.student_temperature}")
        _require(
            self.dino_weight + self.ibot_weight > 0, "loss: dino_weight and ibot_weight are both 0: nothing to learn"
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The EMA teacher."""

    momentum: float = field(0.994, "EMA momentum at the first step; a cosine takes it to momentum_end")
    momentum_end: float = field(1.0, "EMA momentum at the end")
    temperature_start: float = field(0.04, "temperature of the targets at the first step")
    temperature: float = field(0.07, "temperature of the targets after the warm-up")
    temperature_warmup_epochs: float = field(30, "linear warm-up of the temperature", "epochs")

    def __post_init__(self) -> None:
        for name in ("momentum", "momentum_end"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"teacher.{name}: must be in 0–1, is {value}")
        for name in ("temperature_start", "temperature"):
            value = getattr(self, name)
            _require(value > 0, f"teacher.{name}: must be > 0, is {value}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Length, batch and optimizer."""

    epochs: float = field(100, "length of the run (may be a fraction)", "epochs")
    epoch_steps: int = field(1000, "optimizer steps called one epoch, whatever the number of images", "steps")
    batch_size: int = field(16, "images per rank and micro-batch", "images")
    accumulate: int = field(1, "micro-batches per optimizer step; each computes its own DINO, iBOT and KoLeo terms")
    base_lr: float = field(2e-4, "peak learning rate before lr_rule")
    lr_rule: LearningRateRule = field("sqrt_1024", "scaling by the global batch; the effective rate is printed")
    final_lr: float = field(1e-6, "learning rate at the end of the cosine")
    warmup_epochs: float = field(20, "linear warm-up of the learning rate", "epochs")
    weight_decay: float = field(0.04, "AdamW weight decay at the first step; a cosine takes it to weight_decay_end")
    weight_decay_end: float = field(0.2, "weight decay at the end")
    betas: tuple[float, float] = field((0.9, 0.999), "AdamW betas")
    clip: float = field(3.0, "largest gradient norm of backbone, DINO head and iBOT head each; 0 = no clipping")
    layer_decay: float = field(1.0, "learning rate factor per block, from the last block to the first")
    patch_embed_multiplier: float = field(0.2, "learning rate factor of the patch embedding")
    freeze_last_layer_epochs: float = field(1, "prototype layers keep learning rate 0 this long", "epochs")
    freeze_backbone_steps: int = field(
        0, "train only the heads this long: they start random, the backbone does not", "steps"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "epoch_steps", "batch_size", "accumulate", "base_lr"):
            value = getattr(self, name)
            _require(value > 0, f"optim.{name}: must be > 0, is {value}")
        for name in ("warmup_epochs", "clip", "freeze_last_layer_epochs", "freeze_backbone_steps", "final_lr"):
            value = getattr(self, name)
            _require(value >= 0, f"optim.{name}: must be 0 or more, is {value}")
        _require(
            self.total_steps >= 1, f"optim.epochs: {self.epochs} × epoch_steps {self.epoch_steps} is less than one step"
        )
        _require(
            self.steps(self.warmup_epochs) < self.total_steps,
            f"optim.warmup_epochs: {self.warmup_epochs} leaves nothing of the run's {self.epochs} epochs",
        )

    def steps(self, epochs: float) -> int:
        """Epochs in optimizer steps."""
        return round(epochs * self.epoch_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps(self.epochs)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Small tests of the teacher's features while it trains."""

    every: int = field(500, "test the teacher's features this often, and at both ends; 0 = never", "steps")
    labelled: tuple[str, ...] = field(
        (), "labelled data sets (layout of stage 2): do patch tokens distinguish cells from background?"
    )
    images: int = field(64, "images tested, half of them as references", "images")
    best_by: MonitorName = field(
        "auto", "keep the teacher of the highest value in checkpoints/best.pt; auto = probe_patch with monitor.labelled"
    )
    patience: int = field(0, "stop after so many tests without a better value of best_by; 0 = never", "tests")

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"monitor.every: must be 0 or more, is {self.every}")
        _require(self.images >= 8, f"monitor.images: must be 8 or more, is {self.images}")
        _require(self.patience >= 0, f"monitor.patience: must be 0 or more, is {self.patience}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides a stage 1 run."""

    output_dir: str = field(doc="folder of the run: config.yaml, metrics.jsonl, checkpoints/, report.html")
    seed: int = field(0, "seed of weights, data order, crops, masks and drop path")
    weights: str | None = field(None, "backbone to start from (DINOv2, DinoBloom, DINO or ours); null = random")
    patch_resize: PatchResize = field("pinv", "how patch filters change size when weights have another patch size")
    model: ViTConfig = field(factory=ViTConfig, doc="backbone")
    data: DataConfig = field(factory=DataConfig, doc="images")
    augment: AugmentConfig = field(factory=AugmentConfig, doc="augmentation")
    mask: MaskConfig = field(factory=MaskConfig, doc="masking")
    dino_head: HeadConfig = field(factory=HeadConfig, doc="head of the CLS token")
    ibot_head: HeadConfig = field(factory=_ibot_head, doc="head of the patch tokens")
    loss: LossConfig = field(factory=LossConfig, doc="losses")
    teacher: TeacherConfig = field(factory=TeacherConfig, doc="teacher")
    optim: OptimConfig = field(factory=OptimConfig, doc="optimizer and schedules")
    monitor: MonitorConfig = field(factory=MonitorConfig, doc="tests of the teacher's features")
    device: str = field("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = field("auto", "bfloat16 where the hardware has it, or as named")
    parallel: Parallel = field(
        "ddp", "several ranks: ddp keeps the model whole on each, fsdp2 shares it out (ViT-L and larger)"
    )
    compile: bool = field(False, "compile each transformer block (minutes at the start, faster steps on GPUs)")
    activation_checkpointing: bool = field(False, "recompute blocks in the backward pass: less memory, a third slower")
    log_every: int = field(10, "a line in the console and metrics.jsonl", "steps")
    checkpoint_every: int = field(500, "a checkpoint to resume from", "steps")
    keep_checkpoints: int = field(2, "newest checkpoints kept")
    max_bad_steps: int = field(20, "stop after this many skipped steps with a NaN or infinite loss or gradient")
    tensorboard: bool = field(True, "also write TensorBoard files")

    def __post_init__(self) -> None:
        _require_multiple("augment.global_size", self.augment.global_size, self.model.patch_size)
        if self.augment.local_crops:
            _require_multiple("augment.local_size", self.augment.local_size, self.model.patch_size)
        _require(self.model.in_channels in (1, 3), f"model.in_channels: must be 1 or 3, is {self.model.in_channels}")
        _require(self.seed >= 0, f"seed: must be 0 or more, is {self.seed}")
        for name in ("log_every", "checkpoint_every", "keep_checkpoints", "max_bad_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"{name}: must be 1 or more, is {value}")


def _require_multiple(name: str, size: int, patch: int) -> None:
    """Refuse a side that the patch does not divide, naming the two nearest that it does."""
    below = size // patch * patch
    nearest = f"{below} or {below + patch}" if below else f"{patch}"
    _require(
        size > 0 and size % patch == 0, f"{name}: {size} px is not a multiple of the patch size {patch}; use {nearest}"
    )
