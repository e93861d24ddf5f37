"""Resizing of images, labels and maps."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.core.arrays import Float32

Array = npt.NDArray[Any]
Enlarging = Literal["cubic", "linear", "nearest"]
_METHODS: dict[Enlarging, int] = {
    "cubic": cv2.INTER_CUBIC,
    "linear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
}


def resize_image(image: Array, size: tuple[int, int], enlarging: Enlarging = "cubic") -> Array:
    """Resize an image (H, W) or (H, W, C) to `size`: area-averaged where it shrinks, else interpolated.

    The dtype is kept; other than uint8 and uint16 become float32.
    """
    if image.shape[:2] == size:
        return image
    values = image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32)
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else _METHODS[enlarging]
    return np.asarray(cv2.resize(values, (size[1], size[0]), interpolation=method))


def resize_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Resize labels (H, W) of any dtype to `size` by nearest neighbour (pixel centres), exactly."""
    if labels.shape == size:
        return labels
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(np.intp)
    return labels[rows[:, None], columns[None, :]]


def resize_maps(maps: Float32, size: tuple[int, int]) -> Float32:
    """Resize maps (K, h, w) to (K, *size): area-averaged where they shrink, else bilinear."""
    if maps.shape[1:] == size:
        return maps
    return np.stack([resize_image(plane, size, "linear") for plane in maps]).astype(np.float32)
