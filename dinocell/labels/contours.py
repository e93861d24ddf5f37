"""Contour pixels of label images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def trace_contours(labels: NDArray[Any], thickness: int = 1) -> NDArray[np.bool_]:
    """Pixels of each cell that lie within `thickness` pixels of another label or of background.

    Args:
        labels: (H, W) integers, 0 = background.

    Returns:
        (H, W) bool; the image's rim is no outline of a cell that is cut by it.
    """
    return edges(renumber(labels)[0], thickness)


def renumber(labels: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Renumber the labels present to 0..n, keeping their order; 0 stays 0. ValueError for negative labels."""
    array = np.asarray(labels)
    if array.size and array.min() < 0:
        raise ValueError(f"labels hold {array.min()}; they are 0 for background and positive for cells")
    top = int(array.max(initial=0))
    if top > 4 * array.size + 255:  # numbers too wild for a table
        values, inverse = np.unique(array, return_inverse=True)
        offset = 0 if values[0] == 0 else 1
        return (inverse.reshape(array.shape) + offset).astype(np.int32), int(values.size - 1 + offset)
    present = np.zeros(top + 1, np.bool_)
    present[array.ravel().astype(np.intp)] = True
    present[0] = False
    ranks = np.where(present, np.cumsum(present), 0).astype(np.int32)
    return ranks[array.astype(np.intp)], int(present.sum())


def edges(compact: NDArray[np.int32], thickness: int) -> NDArray[np.bool_]:
    # cv2 knows no int32 morphology; float32 holds every label up to 2**24 exactly.
    values = compact.astype(np.float32)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * thickness + 1, 2 * thickness + 1))
    mixed = cv2.dilate(values, kernel) != cv2.erode(values, kernel)
    return np.asarray(mixed & (compact > 0), np.bool_)
