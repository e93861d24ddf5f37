"""Settings of stage 1. The defaults are the paper's (section 3.3) and, where it is silent, DINOv2's.

When a run is resumed, what it learns is fixed: model, augmentation, losses. Its length, batch, learning rate, data
folder and monitors may change and count from then on; device, workers, log and checkpoints are neutral.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinocell.core.device import Precision
from dinocell.core.fields import SettingError, Settings, field
from dinocell.images.gray.contrast import HIGH_PERCENTILE, LOW_PERCENTILE
from dinocell.models import ViTConfig
from dinocell.models.weights.resize import PatchResize
from dinocell.training.schedules import LearningRateRule

Centering = Literal["sinkhorn", "softmax"]
MonitorName = Literal["auto", "none", "probe_patch", "knn_patch", "knn_source", "rankme_patch", "rankme_cls"]
Parallel = Literal["ddp", "fsdp2"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Source of the crops."""

    root: tuple[str, ...] = field(
        doc="folders, files or patterns of images; the DIR of `dinocell curate` is one", resume="free"
    )
    workers: int = field(
        2, "data loading processes per rank; 0 loads in the training process", at_least=0, resume="neutral"
    )
    prefetch: int = field(2, "batches each worker keeps ready", "batches", at_least=1, resume="neutral", advanced=True)
    percentile_low: float = field(
        LOW_PERCENTILE,
        "an image that is not 8-bit is stretched from this percentile …",
        "%",
        at_least=0,
        at_most=100,
        advanced=True,
    )
    percentile_high: float = field(HIGH_PERCENTILE, "… to this one", "%", at_least=0, at_most=100, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("percentile_low", "percentile_high")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings):
    """Multi-crop augmentation (paper section 3.3.4)."""

    global_size: int = field(512, "side of the 2 global crops, a multiple of the patch size", "px", at_least=1)
    local_size: int = field(208, "side of the local crops, a multiple of the patch size", "px", at_least=0)
    local_crops: int = field(8, "local crops per image; 0 drops the global-local DINO term", at_least=0)
    global_scale: tuple[float, float] = field(
        (0.32, 1.0), "area of a global crop, share of the image", above=0, at_most=1, rising=True
    )
    local_scale: tuple[float, float] = field(
        (0.05, 0.32), "area of a local crop, share of the image", above=0, at_most=1, rising=True
    )
    aspect: tuple[float, float] = field(
        (0.75, 4 / 3), "width / height of a crop before resizing", above=0, rising=True, advanced=True
    )
    horizontal_flip: float = field(0.5, "probability of mirroring left-right", at_least=0, at_most=1)
    vertical_flip: float = field(0.0, "probability of mirroring up-down", at_least=0, at_most=1)
    rotate90: bool = field(False, "turn each crop by a random multiple of 90 degrees")
    jitter_probability: float = field(
        0.8, "probability of the brightness and contrast jitter", at_least=0, at_most=1, advanced=True
    )
    brightness: float = field(0.4, "brightness factor from [1 − b, 1 + b]", at_least=0, at_most=1, advanced=True)
    contrast: float = field(0.4, "contrast factor from [1 − c, 1 + c]", at_least=0, at_most=1, advanced=True)
    blur_probability: float = field(
        0.01,
        "probability of a Gaussian blur (the published run in effect used 0.99)",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    blur_sigma: tuple[float, float] = field(
        (0.1, 2.0), "standard deviation of the blur", "px", above=0, rising=True, advanced=True
    )
    solarize_probability: float = field(
        0.1,
        "probability of inverting values >= 128 in the second global crop",
        at_least=0,
        at_most=1,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Settings):
    """Patch masking for iBOT."""

    probability: float = field(0.5, "share of the global crops that are masked", at_least=0, at_most=1, advanced=True)
    ratio: tuple[float, float] = field(
        (0.1, 0.5),
        "smallest and largest share of masked patches in a masked crop",
        above=0,
        at_most=1,
        rising=True,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings):
    """A projection head: backbone width → hidden → hidden → bottleneck → prototypes."""

    prototypes: int = field(8192, "prototypes K", at_least=1, advanced=True)
    hidden: int = field(2048, "width of the two hidden layers", at_least=1, advanced=True)
    bottleneck: int = field(384, "width of the normalised layer before the prototypes", at_least=1, advanced=True)


def _ibot_head() -> HeadConfig:
    return HeadConfig(bottleneck=256)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """Weights and temperatures of the three losses."""

    dino_weight: float = field(1.0, "weight of the two DINO terms", at_least=0)
    ibot_weight: float = field(1.0, "weight of iBOT", at_least=0)
    koleo_weight: float = field(0.1, "weight of KoLeo, summed over the 2 global crops", at_least=0)
    koleo_all_ranks: bool = field(
        False, "KoLeo looks for neighbours on all ranks: better when the batch per GPU is small", advanced=True
    )
    gram_weight: float = field(
        0.0, "weight of Gram anchoring: patch similarities stay near the initial backbone's", at_least=0
    )
    student_temperature: float = field(0.1, "temperature of the student's softmax", above=0, advanced=True)
    centering: Centering = field("sinkhorn", "how teacher scores become targets", advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dino_weight + self.ibot_weight == 0:
            raise SettingError("dino_weight", "0, and so is ibot_weight: nothing to learn; set one of them above 0")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Settings):
    """The EMA teacher."""

    momentum: float = field(
        0.994, "EMA momentum at the first step; a cosine takes it to momentum_end", at_least=0, at_most=1
    )
    momentum_end: float = field(1.0, "EMA momentum at the end", at_least=0, at_most=1, advanced=True)
    temperature_start: float = field(0.04, "temperature of the targets at the first step", above=0, advanced=True)
    temperature: float = field(0.07, "temperature of the targets after the warm-up", above=0, advanced=True)
    temperature_warmup_epochs: float = field(
        30, "linear warm-up of the temperature", "epochs", at_least=0, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Length, batch and optimizer."""

    epochs: float = field(100, "length of the run (may be a fraction)", "epochs", above=0, resume="free")
    epoch_steps: int = field(
        1000,
        "optimizer steps called one epoch, whatever the number of images",
        "steps",
        at_least=1,
        resume="free",
    )
    batch_size: int = field(16, "images per rank and micro-batch", "images", at_least=1, resume="free")
    accumulate: int = field(
        1,
        "micro-batches per optimizer step; each computes its own DINO, iBOT and KoLeo terms",
        at_least=1,
        resume="free",
    )
    base_lr: float = field(2e-4, "peak learning rate before lr_rule", above=0, resume="free")
    lr_rule: LearningRateRule = field(
        "sqrt_1024", "scaling by the global batch; the effective rate is printed", resume="free"
    )
    final_lr: float = field(1e-6, "learning rate at the end of the cosine", at_least=0, resume="free", advanced=True)
    warmup_epochs: float = field(20, "linear warm-up of the learning rate", "epochs", at_least=0, resume="free")
    weight_decay: float = field(
        0.04,
        "AdamW weight decay at the first step; a cosine takes it to weight_decay_end",
        at_least=0,
        resume="free",
        advanced=True,
    )
    weight_decay_end: float = field(0.2, "weight decay at the end", at_least=0, resume="free", advanced=True)
    betas: tuple[float, float] = field((0.9, 0.999), "AdamW betas", at_least=0, below=1, advanced=True)
    clip: float = field(
        3.0,
        "largest gradient norm of backbone, DINO head and iBOT head each; 0 = no clipping",
        at_least=0,
        resume="free",
        advanced=True,
    )
    layer_decay: float = field(
        1.0, "learning rate factor per block, from the last block to the first", above=0, at_most=1, advanced=True
    )
    patch_embed_multiplier: float = field(0.2, "learning rate factor of the patch embedding", at_least=0, advanced=True)
    freeze_last_layer_epochs: float = field(
        1,
        "prototype layers keep learning rate 0 this long",
        "epochs",
        at_least=0,
        resume="free",
        advanced=True,
    )
    freeze_backbone_steps: int = field(
        0,
        "train only the heads this long: they start random, the backbone does not",
        "steps",
        at_least=0,
        resume="free",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps < 1:
            raise SettingError(
                "epochs", f"{self.epochs:g} × epoch_steps={self.epoch_steps} is less than one step; give more"
            )
        if self.steps(self.warmup_epochs) >= self.total_steps:
            raise SettingError("warmup_epochs", f"must be below epochs={self.epochs:g}, got {self.warmup_epochs:g}")

    def steps(self, epochs: float) -> int:
        """Convert epochs to optimizer steps."""
        return round(epochs * self.epoch_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps(self.epochs)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(Settings):
    """Small tests of the teacher's features while it trains."""

    every: int = field(
        500,
        "test the teacher's features this often, and at both ends; 0 = never",
        "steps",
        at_least=0,
        resume="free",
    )
    labelled: tuple[str, ...] = field(
        (), "labelled datasets (layout of stage 2): do patch tokens distinguish cells from background?", resume="free"
    )
    images: int = field(
        64, "images tested, half of them as references", "images", at_least=8, resume="free", advanced=True
    )
    best_by: MonitorName = field(
        "auto",
        "keep the teacher of the highest value in checkpoints/best.pt; auto = probe_patch with monitor.labelled",
        resume="free",
    )
    patience: int = field(
        0,
        "stop after so many tests without a better value of best_by; 0 = never",
        "tests",
        at_least=0,
        resume="free",
    )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Everything that decides a stage 1 run."""

    output_dir: str = field(
        doc="folder of the run: config.yaml, metrics.jsonl, checkpoints/, report.html", resume="neutral"
    )
    seed: int = field(0, "seed of weights, data order, crops, masks and drop path", at_least=0)
    weights: str | None = field(None, "backbone to start from (DINOv2, DinoBloom, DINO or ours); null = random")
    patch_resize: PatchResize = field(
        "pinv", "how patch filters change size when weights have another patch size", advanced=True
    )
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
    device: str = field("auto", "auto, cpu, cuda, cuda:N or mps", resume="neutral")
    precision: Precision = field("auto", "bfloat16 where the hardware has it, or as named", resume="free")
    parallel: Parallel = field(
        "ddp",
        "several ranks: ddp keeps the model whole on each, fsdp2 shares it out (ViT-L and larger)",
        resume="neutral",
    )
    compile: bool = field(
        False, "compile each transformer block (minutes at the start, faster steps on GPUs)", resume="neutral"
    )
    activation_checkpointing: bool = field(
        False, "recompute blocks in the backward pass: less memory, a third slower", resume="neutral"
    )
    log_every: int = field(10, "a line in the console and metrics.jsonl", "steps", at_least=1, resume="neutral")
    checkpoint_every: int = field(500, "a checkpoint to resume from", "steps", at_least=1, resume="neutral")
    keep_checkpoints: int = field(2, "newest checkpoints kept", at_least=1, resume="neutral", advanced=True)
    max_bad_steps: int = field(
        20,
        "stop after this many skipped steps with a NaN or infinite loss or gradient",
        at_least=1,
        resume="neutral",
        advanced=True,
    )
    tensorboard: bool = field(True, "also write TensorBoard files", resume="neutral")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_multiple("global_size", self.augment.global_size)
        if self.augment.local_crops:
            self._check_multiple("local_size", self.augment.local_size)

    def _check_multiple(self, name: str, size: int) -> None:
        """Refuse a side that the patch does not divide, naming the two nearest that it does."""
        patch = self.model.patch_size
        below = size // patch * patch
        nearest = f"{below} or {below + patch}" if below else f"{patch}"
        if not size or size % patch:
            raise SettingError(
                f"augment.{name}", f"{size} px is not a multiple of model.patch_size={patch}; use {nearest}"
            )
