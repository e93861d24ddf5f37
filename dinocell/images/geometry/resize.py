"""Resizing of images, labels and maps."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

Array = npt.NDArray[Any]


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Image (H, W) to `size`: bicubic up, area-averaged down; dtype kept, float32 for any but uint8 and uint16."""
    if image.shape[:2] == size:
        return image
    values = image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32)
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return np.asarray(
        cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    )


def resize_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Labels (H, W) to `size` by nearest neighbour (pixel centres); any integer dtype, exact."""
    if labels.shape == size:
        return labels
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(np.intp)
    return labels[rows[:, None], columns[None, :]]


def resize_maps(maps: Float32, size: tuple[int, int]) -> Float32:
    """Maps (K, h, w) resampled to (K, *size): area-averaged when shrinking, bilinear when growing."""
    if maps.shape[1:] == size:
        return maps
    shrinking = size[0] * size[1] < maps.shape[1] * maps.shape[2]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.stack([cv2.resize(plane, size[::-1], interpolation=method) for plane in maps]).astype(np.float32)
