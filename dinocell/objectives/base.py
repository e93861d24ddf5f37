"""What every objective is: targets, loss, decode and nothing else. A new objective is one file that implements this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dinocell.core.config import field
from dinocell.core.errors import ConfigError

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where maps lie in the image they are a part of, in pixels; sampling depends on it.

    Attributes:
        y, x: the image's row and column of the maps' first pixel.
        height, width: the image's size.
    """

    y: int
    x: int
    height: int
    width: int


class Objective(Protocol):
    """The maps a decoder predicts, how they are learnt, and how they become labels."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the K maps, in order."""

    def targets(self, labels: npt.ArrayLike) -> Array:
        """Labels (H, W), any integer dtype and numbering, 0 = background → target maps (K, H, W) float32."""

    def loss(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Raw maps and targets [B, K, H, W], weight [B, 1, H, W] ≥ 0 → scalar; 0 when every weight is 0."""

    def decode(self, prediction: Array, frame: Frame | None = None) -> Labels:
        """Raw network output (K, H, W) → labels (H, W) int32, 1…n without gaps, 0 = background.

        `frame` says where the maps lie in a larger image; without it they are the image.
        """

    def transform_targets(self, target: Array, flip_y: bool, flip_x: bool, rot90_k: int) -> Array:
        """Targets of the image after flips, then `rot90_k` counter-clockwise quarter turns (as `np.rot90`)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network learns. Fields of other kinds than `kind` are ignored."""

    kind: Literal["flows", "distance", "semantic"] = field("flows", "what the decoder predicts")
    flow_scale: float = field(1.0, "flows: the network predicts flows of this length (paper 1; authors' code 5)")
    probability_loss: Literal["mse", "bce_with_logits"] = field(
        "mse", "flows: mse = the map is a probability; bce_with_logits = the map is a logit"
    )
    flow_variant: Literal["cellpose", "leak_free"] = field(
        "cellpose", "flows: target gradient across touching cells (as Cellpose) or within each cell only"
    )
    threshold: float = field(0.5, "flows, semantic: pixels above this probability belong to cells")
    flow_error: float = field(
        0.4, "flows: drop a cell whose mean squared difference from its own flow exceeds this; 0 = off"
    )
    max_steps: int = field(
        200, "flows: Euler steps, at the scale that the network sees; a pixel still on its way may take more"
    )
    max_size_fraction: float = field(0.4, "flows: drop a cell larger than this part of the image, with a warning")
    min_size: int = field(15, "drop cells smaller than this", unit="px")
    marker_threshold: float = field(0.5, "distance: each region above it is the marker of one cell")
    mask_threshold: float = field(0.05, "distance: pixels above it belong to cells")
    classes: int = field(2, "semantic: classes with background; 2 = cell or not, one map and BCE")
    instances: Literal["components", "watershed"] = field("components", "semantic: how classes become cells")

    def __post_init__(self) -> None:
        for name in ("threshold", "marker_threshold", "mask_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}: must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.max_size_fraction <= 1:
            raise ConfigError(f"objective.max_size_fraction: must lie in (0, 1], got {self.max_size_fraction}")
        if self.flow_scale <= 0:
            raise ConfigError(f"objective.flow_scale: must be above 0, got {self.flow_scale}")
        if self.flow_error < 0:
            raise ConfigError(f"objective.flow_error: must not be negative, got {self.flow_error}; 0 turns it off")
        if self.max_steps < 1:
            raise ConfigError(f"objective.max_steps: must be at least 1, got {self.max_steps}")
        if self.min_size < 0:
            raise ConfigError(f"objective.min_size: must not be negative, got {self.min_size}")
        if not 2 <= self.classes <= 256:
            raise ConfigError(f"objective.classes: must lie in 2…256, got {self.classes}")
        if self.mask_threshold >= self.marker_threshold:
            raise ConfigError(
                f"objective.mask_threshold: must be below marker_threshold {self.marker_threshold}, "
                f"got {self.mask_threshold}"
            )

    def seen_at(self, scale: float) -> ObjectiveConfig:
        """For maps of an image that the network saw `scale` times as large: lengths are in pixels that it saw."""
        if scale == 1:
            return self
        steps = max(self.max_steps, round(self.max_steps / scale))
        return replace(self, min_size=round(self.min_size / scale**2), max_steps=steps)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config.kind` names."""
    from dinocell.objectives.distance import DistanceObjective
    from dinocell.objectives.flows.objective import FlowsObjective
    from dinocell.objectives.semantic import SemanticObjective

    match config.kind:
        case "flows":
            return FlowsObjective(config)
        case "distance":
            return DistanceObjective(config)
        case "semantic":
            return SemanticObjective(config)
    raise ConfigError(f"objective.kind: unknown {config.kind!r}; known: flows, distance, semantic")


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Σ(values · weight) / Σweight, and a finite 0 with zero gradient when every weight is 0.

    Args:
        values: [B, H, W] loss per pixel.
        weight: [B, H, W] M ≥ 0: 1 on labelled pixels, less on unlabelled ones, 0 on ignored ones.
    """
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))


def turn(maps: Array, flip_y: bool, flip_x: bool, rot90_k: int) -> Array:
    """Flips, then counter-clockwise quarter turns, of maps (K, H, W) whose values do not depend on direction."""
    if flip_y:
        maps = maps[:, ::-1]
    if flip_x:
        maps = maps[:, :, ::-1]
    return np.ascontiguousarray(np.rot90(maps, rot90_k, axes=(1, 2)))
