"""Base of every objective: the maps a decoder predicts, how they are learned, how they become cells, and what others
ask of them.

A new objective is one file with a subclass of `Objective`, listed in `objectives/build.py`; its settings are fields of
`ObjectiveConfig`. Nothing outside this folder asks for the kind of an objective.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dinocell.core import log
from dinocell.core.arrays import Labels
from dinocell.core.fields import Settings, field
from dinocell.images.geometry.symmetry import Turn
from dinocell.labels.cells import Cells

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

FLOWS, DISTANCE, SEMANTIC = ("kind=flows",), ("kind=distance",), ("kind=semantic",)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Position of maps in the image they are a part of, in pixels; sampling and size limits depend on it.

    Attributes:
        y, x: the image's row and column of the maps' first pixel.
        height, width: the image's size.
    """

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Labels and what decoding dropped.

    Attributes:
        labels: (H, W) int32, 1…n without gaps, 0 = background.
        notes: sentences that a user should read.
        details: one line for the log file; empty = nothing to say.
    """

    labels: Labels
    notes: tuple[str, ...] = ()
    details: str = ""

    def announce(self) -> None:
        """Print the notes as warnings, and log the details."""
        self.log_details()
        for note in self.notes:
            log.warning(note)

    def log_details(self) -> None:
        """Log the details, for those who show the notes themselves."""
        if self.details:
            logger.info("%s", self.details)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """Settings of what the network learns. Fields that belong to another `kind` are ignored."""

    kind: Literal["flows", "distance", "semantic"] = field("flows", "what the decoder predicts")
    flow_scale: float = field(
        1.0,
        "the network predicts flows of this length (paper 1; authors' code 5)",
        above=0,
        advanced=True,
        applies_to=FLOWS,
    )
    probability_loss: Literal["mse", "bce_with_logits"] = field(
        "mse", "mse = the map is a probability; bce_with_logits = the map is a logit", applies_to=FLOWS
    )
    flow_variant: Literal["cellpose", "leak_free"] = field(
        "cellpose",
        "target gradient across touching cells (as Cellpose) or within each cell only",
        advanced=True,
        applies_to=FLOWS,
    )
    threshold: float = field(
        0.5,
        "pixels above this probability belong to cells",
        above=0,
        below=1,
        applies_to=(*FLOWS, *SEMANTIC),
    )
    flow_error: float = field(
        0.4,
        "drop a cell whose mean squared difference from its own flow exceeds this; 0 = off",
        at_least=0,
        applies_to=FLOWS,
    )
    max_steps: int = field(
        200,
        "Euler steps, at the scale that the network sees; a pixel still on its way may take more",
        at_least=1,
        advanced=True,
        applies_to=FLOWS,
    )
    max_size_fraction: float = field(
        0.4,
        "drop a cell larger than this part of the image, with a warning",
        above=0,
        at_most=1,
        advanced=True,
        applies_to=FLOWS,
    )
    min_size: int = field(15, "drop cells smaller than this", "px", at_least=0)
    marker_threshold: float = field(
        0.5, "each region above it is the marker of one cell", above=0, below=1, applies_to=DISTANCE
    )
    mask_threshold: float = field(0.05, "pixels above it belong to cells", above=0, below=1, applies_to=DISTANCE)
    classes: int = field(
        2, "classes with background; 2 = cell or not, one map and BCE", at_least=2, at_most=256, applies_to=SEMANTIC
    )
    instances: Literal["components", "watershed"] = field("components", "how classes become cells", applies_to=SEMANTIC)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("mask_threshold", "marker_threshold")

    def seen_at(self, scale: float) -> ObjectiveConfig:
        """Return the settings for maps of an image that the network saw `scale` times as large.

        Lengths and areas are in pixels that it saw.
        """
        if scale == 1:
            return self
        steps = max(self.max_steps, round(self.max_steps / scale))
        return replace(self, min_size=round(self.min_size / scale**2), max_steps=steps)

    def with_values(self, values: Mapping[str, float]) -> ObjectiveConfig | None:
        """Return the settings with other values, or None where these exclude each other."""
        mask = values.get("mask_threshold", self.mask_threshold)
        marker = values.get("marker_threshold", self.marker_threshold)
        return replace(self, **values) if mask < marker else None  # type: ignore[arg-type]


class Objective(ABC):
    """Maps of a decoder: how they are learned, how they become labels, and what others need to know of them.

    The defaults are those of maps that do not depend on direction, from which each cell is decoded on its own.

    Attributes:
        name: the value of `objective.kind` that stands for this objective.
        channels: names of the K maps, in order.
        vector_maps: pairs (y, x) of map indices that are the components of a vector and turn with the image.
        has_instances: labels are cells with numbers of no meaning; if not, they are classes, which nothing may
            renumber.
        class_count: classes, with background, of `class_map`; 0 = there is no such map.
        cell_check: name of the comparison of each decoded cell with its maps (`cell_errors`); empty = there is none.
    """

    name: ClassVar[str]
    channels: tuple[str, ...]
    vector_maps: ClassVar[tuple[tuple[int, int], ...]] = ()
    has_instances: ClassVar[bool] = True
    class_count: int = 0
    cell_check: ClassVar[str] = ""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    @abstractmethod
    def describe(self) -> str:
        """Say in words what the maps are, as a part of a sentence."""

    # ---- learning -------------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self, labels: npt.ArrayLike) -> Array:
        """Make target maps (K, H, W) float32 of labels (H, W), any integer dtype and numbering, 0 = background."""

    @abstractmethod
    def loss_terms(self, prediction: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Compute the named parts of the loss, scalars that sum to it; each is 0 when every weight is 0.

        Args:
            prediction: raw maps [B, K, H, W], any float dtype.
            target: [B, K, H, W].
            weight: [B, 1, H, W] ≥ 0.
        """

    def loss(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Sum `loss_terms` to a scalar."""
        return total_loss(self.loss_terms(prediction, target, weight))

    def transform_targets(self, target: Array, turn: Turn) -> Array:
        """Make the targets (K, H, W) of a turned image."""
        turned = turn.apply(target)
        turn.turn_vectors(turned, self.vector_maps)
        return turned

    # ---- decoding -------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode_with_notes(self, prediction: Array, frame: Frame | None = None) -> Decoded:
        """Turn raw maps (K, H, W) into labels, and say what was dropped; prints nothing.

        `frame` is the position of the maps in a larger image; without it they are the image.
        """

    def decode(self, prediction: Array, frame: Frame | None = None) -> Labels:
        """Turn raw maps (K, H, W) into labels (H, W) int32 as `decode_with_notes` does, and print its notes."""
        decoded = self.decode_with_notes(prediction, frame)
        decoded.announce()
        return decoded.labels

    @abstractmethod
    def cell_probability(self, maps: Array) -> Array:
        """Compute from raw maps (K, H, W) how likely each pixel is part of a cell: (H, W) float32 in [0, 1]."""

    def foreground(self, maps: Array) -> npt.NDArray[np.bool_]:
        """Mark the pixels (H, W) of raw maps (K, H, W) that decoding takes for cells."""
        return self.cell_probability(maps) > self.config.threshold

    def vectors(self, maps: Array) -> Array | None:
        """Return the vector field (2, H, W), y then x, of raw maps (K, H, W) at the scale of the targets, if any."""
        return None

    # ---- choosing how to decode -----------------------------------------------------------------------------------

    @abstractmethod
    def tuning_grid(self) -> Mapping[str, tuple[float, ...]]:
        """List values worth trying on validation images, by name of the setting of `ObjectiveConfig`."""

    def without_check(self) -> ObjectiveConfig:
        """Return the settings that keep cells which disagree with their maps; the same ones without a `cell_check`."""
        return self.config

    def cell_errors(self, maps: Array, cells: Cells) -> npt.NDArray[np.float64]:
        """Measure by how much each of n cells disagrees with the raw maps (K, H, W) it was decoded from: (n,) ≥ 0.

        Raises:
            NotImplementedError: the objective has no `cell_check`.
        """
        raise NotImplementedError(f"{self.name} has no check of its cells")

    # ---- classes and figures --------------------------------------------------------------------------------------

    def class_map(self, maps: Array) -> npt.NDArray[np.uint8]:
        """Return the class of each pixel (H, W) of raw maps (K, H, W), 0 = background.

        Raises:
            NotImplementedError: the objective has no classes (`class_count` is 0).
        """
        raise NotImplementedError(f"{self.name} has no classes")

    def class_truth(self, labels: Labels) -> Labels:
        """Return the classes (H, W) that `class_map` should find in an image with these labels."""
        raise NotImplementedError(f"{self.name} has no classes")

    def figures(self, target: Array) -> dict[str, Array]:
        """Split target maps (K, H, W) into what a page shows: title → (H, W) in [0, 1], or vectors (2, H, W)."""
        pairs = dict(self.vector_maps)
        found = {}
        for number, name in enumerate(self.channels):
            if number in pairs:
                found[name.removesuffix("_y")] = target[[number, pairs[number]]]
            elif number not in pairs.values():
                found[name.replace("_", " ")] = target[number]
        return found


def total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum the terms of a loss to a scalar."""
    return torch.stack(list(terms.values())).sum()


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Compute Σ(values · weight) / Σweight, and a finite 0 with zero gradient when every weight is 0.

    Args:
        values: [B, H, W] loss per pixel.
        weight: [B, H, W] M ≥ 0: 1 on labelled pixels, less on unlabelled ones, 0 on ignored ones.
    """
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))
