"""Distance: each pixel's distance to the border of its cell, 1 at the deepest point (SAMCell; the paper's comparison).

VandeLoo et al. 2025, SAMCell.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import watershed
from torch import Tensor

from dinocell.core.arrays import Labels
from dinocell.labels.cells import find_cells, keep_cells
from dinocell.labels.regions import fill_holes
from dinocell.objectives.base import Array, Decoded, Frame, Objective, weighted_mean

EIGHT = np.ones((3, 3), bool)


def masks_to_distance(labels: npt.ArrayLike) -> Array:
    """Measure the Euclidean distance of each pixel to the nearest one of another label, ÷ the cell's largest.

    The image border is not a border of a cell: a cell cut by it keeps its ridge there, so targets of a crop resemble
    the crop of the targets.

    Args:
        labels: (H, W), any integer dtype and numbering, 0 = background.

    Returns:
        (H, W) float32 in (0, 1] inside cells, 0 outside.
    """
    cells = find_cells(labels)
    height, width = cells.labels.shape
    distance = np.zeros((height, width), np.float32)
    for number, (y0, x0, y1, x1) in zip(cells.numbers, cells.boxes, strict=True):
        window = slice(max(y0 - 1, 0), min(y1 + 1, height)), slice(max(x0 - 1, 0), min(x1 + 1, width))
        mask = (cells.labels[window] == number).astype(np.uint8)
        if mask.all():
            distance[window] = 1.0
            continue
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        inside = mask > 0
        distance[window][inside] = depth[inside] / depth.max()
    return distance


def distance_to_masks(
    distance: npt.ArrayLike, marker_threshold: float = 0.5, mask_threshold: float = 0.05, min_size: int = 15
) -> Labels:
    """Decode by watershed of −distance from one marker per region above `marker_threshold`, within `mask_threshold`.

    The marker is the region's centroid where that is inside the region, else its deepest pixel.

    Args:
        distance: (H, W) as `masks_to_distance` gives, or its prediction.
        marker_threshold: regions (8-connected) above it are one cell each.
        mask_threshold: pixels above it belong to cells.
        min_size: drop cells under this many pixels.

    Returns:
        (H, W) int32 labels 1…n without gaps, 0 = background.
    """
    distance = np.ascontiguousarray(distance, np.float32)
    if distance.ndim != 2:
        raise ValueError(f"distance must be (H, W), got shape {distance.shape}")
    regions, count = ndimage.label(distance > marker_threshold, structure=EIGHT)
    if count == 0:
        return np.zeros(distance.shape, np.int32)
    markers = np.zeros(distance.shape, np.int32)
    markers[tuple(_marker_points(regions, distance, count).T)] = np.arange(1, count + 1)
    labels = watershed(-distance, markers, connectivity=2, mask=distance > mask_threshold).astype(np.int32)
    fill_holes(labels)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return keep_cells(labels, sizes >= max(min_size, 1))


def _marker_points(regions: npt.NDArray[np.signedinteger], distance: Array, count: int) -> npt.NDArray[np.intp]:
    """(n, 2) pixel of each region 1…n: the rounded centroid, or the deepest pixel of a region that misses it."""
    numbers = np.arange(1, count + 1)
    centres = np.rint(ndimage.center_of_mass(regions > 0, regions, numbers)).astype(np.intp)
    outside = regions[tuple(centres.T)] != numbers
    if outside.any():
        centres[outside] = ndimage.maximum_position(distance, regions, numbers[outside])
    return centres


class DistanceObjective(Objective):
    """One map, the normalised distance, by mean squared error. The map is the distance itself, not a logit."""

    name = "distance"
    channels = ("distance",)

    def describe(self) -> str:
        """Say in words what the map is."""
        return "the distance to the cell's border, 1 (white) in the middle of every cell"

    def targets(self, labels: npt.ArrayLike) -> Array:
        """Make the distance map (1, H, W) float32 in [0, 1] of labels (H, W)."""
        return masks_to_distance(labels)[None]

    def loss_terms(self, prediction: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Compute Σ(L·M)/ΣM with L the squared difference."""
        squares = (prediction[:, 0].float() - target[:, 0].float()).square()  # [B, H, W]
        return {"distance": weighted_mean(squares, weight[:, 0].float())}

    def decode_with_notes(self, prediction: Array, frame: Frame | None = None) -> Decoded:
        """Turn a raw map (1, H, W) into labels."""
        config = self.config
        return Decoded(
            labels=distance_to_masks(prediction[0], config.marker_threshold, config.mask_threshold, config.min_size)
        )

    def cell_probability(self, maps: Array) -> Array:
        """Return the distance itself, cut to [0, 1]: it is above 0 in cells only."""
        return np.clip(maps[0], 0, 1)

    def foreground(self, maps: Array) -> npt.NDArray[np.bool_]:
        """Mark the pixels above `mask_threshold`."""
        return self.cell_probability(maps) > self.config.mask_threshold

    def tuning_grid(self) -> Mapping[str, tuple[float, ...]]:
        """List values of both thresholds."""
        return {"marker_threshold": (0.3, 0.4, 0.5, 0.6, 0.7), "mask_threshold": (0.05, 0.1, 0.2)}
