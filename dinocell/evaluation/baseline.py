"""The classical baseline every report prints beside a trained model: Otsu's threshold and a seeded watershed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from dinocell.labels.cells import keep_cells

_SIGMA = 1.0
_MIN_SIZE = 15
_MIN_DISTANCE = 5


def otsu_watershed(gray: NDArray[Any]) -> NDArray[np.int32]:
    """Segment cells with a global threshold, no parameter fitted to any dataset.

    Gaussian smoothing (1 px), Otsu's threshold, holes filled; the maxima of the smoothed distance transform, at least
    5 px apart, seed a watershed of the foreground; objects under 15 px are dropped.

    Polarity: the foreground is the side of the threshold that covers the smaller part of the image's rim, because
    background usually surrounds the cells, whatever share of the area they fill.

    Args:
        gray: (H, W) of any integer, bool or float dtype; values that are not finite count as 0.

    Returns:
        (H, W) int32 labels 0..n, consecutive; all zero for a constant image.

    Raises:
        ValueError: the image is not (H, W).
    """
    image = np.asarray(gray)
    if image.ndim != 2:
        raise ValueError(f"image has shape {image.shape}; the baseline takes one gray plane (H, W)")
    smooth = ndimage.gaussian_filter(np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0), _SIGMA)
    if smooth.size == 0 or float(np.ptp(smooth)) == 0:
        return np.zeros(image.shape, np.int32)
    foreground = ndimage.binary_fill_holes(_choose_polarity(smooth > threshold_otsu(smooth)))
    distance = cv2.distanceTransform(foreground.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Unsmoothed, a ragged outline makes ridges with several maxima and cells fall apart.
    distance = ndimage.gaussian_filter(distance, 2 * _SIGMA)
    peaks = peak_local_max(
        distance, min_distance=_MIN_DISTANCE, labels=foreground.astype(np.int32), exclude_border=False
    )
    seeds = np.zeros(image.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=foreground)
    return _drop_small(np.asarray(labels, np.int32))


def _choose_polarity(bright: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rim = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    return ~bright if rim.mean() > 0.5 else bright


def _drop_small(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    sizes = np.bincount(labels.ravel())
    return keep_cells(labels, sizes[1:] >= _MIN_SIZE)
