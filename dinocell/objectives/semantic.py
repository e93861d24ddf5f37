"""Semantic: a class per pixel, by BCE or CE and Dice in equal parts; cells by components or watershed.

The second system this project covers (DinoBloom-style white-cell segmentation) stops at classes; instances are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage, special
from skimage.feature import peak_local_max
from skimage.segmentation import watershed
from torch import Tensor

from dinocell.core.arrays import Labels
from dinocell.labels.cells import keep_cells
from dinocell.objectives.base import Array, Decoded, Frame, Objective, ObjectiveConfig, weighted_mean

EIGHT = np.ones((3, 3), bool)
DICE_SMOOTH = 1.0
# Watershed markers: depths that differ by less than the noise of a rough outline are one cell.
MARKER_SIGMA = 1.5
MARKER_DISTANCE = 5


def dice_loss(probability: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute 1 − weighted Dice over the whole batch, mean over classes: 1 − (2Σ M p t + 1) / (ΣM p + ΣM t + 1).

    Args:
        probability: [B, C, H, W] in [0, 1].
        target: [B, C, H, W] 0 or 1.
        weight: [B, 1, H, W] ≥ 0.
    """
    both = (weight * probability * target).sum(dim=(0, 2, 3))  # [C]
    either = (weight * (probability + target)).sum(dim=(0, 2, 3))  # [C]
    return (1 - (2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH)).mean()


def mask_to_instances(
    mask: npt.NDArray[np.bool_], method: Literal["components", "watershed"], min_size: int = 15
) -> Labels:
    """Split a binary mask (H, W) into cells.

    Args:
        mask: True inside cells.
        method: `components` = 8-connected regions; `watershed` also splits touching cells at the necks between the
            maxima of the smoothed distance to the background.
        min_size: drop cells under this many pixels.

    Returns:
        (H, W) int32 labels 1…n without gaps.
    """
    components, count = ndimage.label(mask, structure=EIGHT)
    labels = components.astype(np.int32)
    if count and method == "watershed":
        depth = ndimage.distance_transform_edt(mask)
        smooth = ndimage.gaussian_filter(depth, MARKER_SIGMA)
        peaks = peak_local_max(smooth, min_distance=MARKER_DISTANCE, labels=components, exclude_border=False)
        markers = np.zeros(mask.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        labels = watershed(-smooth, markers, connectivity=2, mask=mask).astype(np.int32)
    sizes = np.bincount(labels.ravel(), minlength=1)[1:]
    return keep_cells(labels, sizes >= max(min_size, 1))


class SemanticObjective(Objective):
    """Class maps. With two classes one map, the logit of `cell`; with more, one logit per class, 0 = background.

    With two classes any label image is a target (label > 0); with more, the labels are the class numbers.
    """

    name = "semantic"
    has_instances = False

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        self.class_count = config.classes
        self.binary = config.classes == 2
        self.channels = ("cell",) if self.binary else tuple(f"class_{c}" for c in range(config.classes))

    def describe(self) -> str:
        """Say in words what the maps are."""
        return "cell or background, or one map for each class"

    def targets(self, labels: npt.ArrayLike) -> Array:
        """Make class maps (K, H, W) float32, 0 or 1, of labels or class numbers (H, W).

        Raises:
            ValueError: a class number at or above `classes` when there are more than two.
        """
        array = np.asarray(labels)
        if self.binary:
            return (array > 0)[None].astype(np.float32)
        if array.size and (array.max() >= self.config.classes or array.min() < 0):
            raise ValueError(
                f"class numbers must be in 0…{self.config.classes - 1}, got {array.min()}…{array.max()}; "
                "set objective.classes or use classes=2 for instance labels"
            )
        return (array[None] == np.arange(self.config.classes)[:, None, None]).astype(np.float32)

    def loss_terms(self, prediction: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Compute 0.5 · (B)CE, Σ(L·M)/ΣM, and 0.5 · Dice, both weighted by M."""
        prediction, target, weight = prediction.float(), target.float(), weight.float()
        if self.binary:
            entropy = F.binary_cross_entropy_with_logits(prediction[:, 0], target[:, 0], reduction="none")
            probability = prediction.sigmoid()
        else:
            entropy = -(target * prediction.log_softmax(dim=1)).sum(dim=1)  # [B, H, W]
            probability = prediction.softmax(dim=1)
        return {
            "entropy": 0.5 * weighted_mean(entropy, weight[:, 0]),
            "dice": 0.5 * dice_loss(probability, target, weight),
        }

    def class_map(self, maps: Array) -> npt.NDArray[np.uint8]:
        """Return the most likely class of each pixel (H, W) of raw logits (K, H, W)."""
        raw = torch.from_numpy(np.ascontiguousarray(maps, np.float32))
        if self.binary:
            return (torch.sigmoid(raw[0]) > self.config.threshold).numpy().astype(np.uint8)
        return raw.argmax(dim=0).numpy().astype(np.uint8)

    def class_truth(self, labels: Labels) -> Labels:
        """Return the class numbers that labels (H, W) are; with two classes, 1 in every cell."""
        return (labels > 0).astype(np.int32) if self.binary else labels

    def decode_with_notes(self, prediction: Array, frame: Frame | None = None) -> Decoded:
        """Turn raw logits (K, H, W) into labels; touching regions of two classes are two cells."""
        classes = self.class_map(prediction)
        labels = np.zeros(classes.shape, np.int32)
        for number in range(1, self.config.classes):
            cells = mask_to_instances(classes == number, self.config.instances, self.config.min_size)
            labels = np.where(cells > 0, cells + labels.max(initial=0), labels).astype(np.int32)
        return Decoded(labels=labels)

    def cell_probability(self, maps: Array) -> Array:
        """Compute the probability of any class but background from raw logits (K, H, W)."""
        cell = special.expit(maps[0]) if self.binary else 1 - special.softmax(maps, axis=0)[0]
        return np.asarray(cell, np.float32)

    def tuning_grid(self) -> Mapping[str, tuple[float, ...]]:
        """List values of the threshold, which only the decoding of two classes has."""
        return {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)} if self.binary else {}
