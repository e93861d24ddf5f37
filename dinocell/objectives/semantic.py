"""Semantic: a class per pixel, by BCE or CE and Dice in equal parts; cells by components or watershed.

The second system this project covers (DinoBloom-style white-cell segmentation) stops at classes; instances are ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed
from torch import Tensor

from dinocell.labels.cells import keep_cells
from dinocell.objectives.base import Array, Frame, Labels, ObjectiveConfig, turn, weighted_mean

EIGHT = np.ones((3, 3), bool)
DICE_SMOOTH = 1.0
# Watershed markers: depths that differ by less than the noise of a rough outline are one cell.
MARKER_SIGMA = 1.5
MARKER_DISTANCE = 5


def dice_loss(probability: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 − weighted Dice over the whole batch, mean over classes: 1 − (2Σ M p t + 1) / (ΣM p + ΣM t + 1).

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
    """Cells of a binary mask (H, W).

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


class SemanticObjective:
    """Class maps. With two classes one map, the logit of `cell`; with more, one logit per class, 0 = background.

    With two classes any label image is a target (label > 0); with more, the labels are the class numbers.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.binary = config.classes == 2
        self.channels = ("cell",) if self.binary else tuple(f"class_{c}" for c in range(config.classes))

    def targets(self, labels: npt.ArrayLike) -> Array:
        """(H, W) labels or class numbers → (K, H, W) float32, 0 or 1.

        Raises:
            ValueError: a class number at or above `classes` when there are more than two.
        """
        array = np.asarray(labels)
        if self.binary:
            return (array > 0)[None].astype(np.float32)
        if array.size and (array.max() >= self.config.classes or array.min() < 0):
            raise ValueError(
                f"class numbers must lie in 0…{self.config.classes - 1}, got {array.min()}…{array.max()}; "
                "set objective.classes or use classes=2 for instance labels"
            )
        return (array[None] == np.arange(self.config.classes)[:, None, None]).astype(np.float32)

    def loss(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """0.5 · (B)CE, Σ(L·M)/ΣM, + 0.5 · Dice, both weighted by M; 0 when every weight is 0."""
        prediction, target, weight = prediction.float(), target.float(), weight.float()
        if self.binary:
            entropy = F.binary_cross_entropy_with_logits(prediction[:, 0], target[:, 0], reduction="none")
            probability = prediction.sigmoid()
        else:
            entropy = -(target * prediction.log_softmax(dim=1)).sum(dim=1)  # [B, H, W]
            probability = prediction.softmax(dim=1)
        return 0.5 * weighted_mean(entropy, weight[:, 0]) + 0.5 * dice_loss(probability, target, weight)

    def classes(self, prediction: Array) -> npt.NDArray[np.uint8]:
        """Raw logits (K, H, W) → class number of each pixel (H, W)."""
        raw = torch.from_numpy(np.ascontiguousarray(prediction, np.float32))
        if self.binary:
            return (torch.sigmoid(raw[0]) > self.config.threshold).numpy().astype(np.uint8)
        return raw.argmax(dim=0).numpy().astype(np.uint8)

    def decode(self, prediction: Array, frame: Frame | None = None) -> Labels:
        """Raw logits (K, H, W) → labels (H, W) int32; touching regions of two classes are two cells."""
        classes = self.classes(prediction)
        labels = np.zeros(classes.shape, np.int32)
        for number in range(1, self.config.classes):
            cells = mask_to_instances(classes == number, self.config.instances, self.config.min_size)
            labels = np.where(cells > 0, cells + labels.max(initial=0), labels).astype(np.int32)
        return labels

    def transform_targets(self, target: Array, flip_y: bool, flip_x: bool, rot90_k: int) -> Array:
        """Exact targets of the flipped and turned image."""
        return turn(target, flip_y, flip_x, rot90_k)
