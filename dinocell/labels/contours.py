"""Contour pixels of label images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.labels.cells import renumber


def trace_contours(labels: NDArray[Any], thickness: int = 1) -> NDArray[np.bool_]:
    """Pixels of each cell that are within `thickness` pixels of another label or of background.

    Args:
        labels: (H, W) integers, 0 = background.

    Returns:
        (H, W) bool; the image's rim is not an outline of a cell that is cut by it.
    """
    return inner_edges(renumber(labels)[0], thickness)


def inner_edges(compact: NDArray[np.int32], thickness: int) -> NDArray[np.bool_]:
    """`trace_contours` of labels 0…n."""
    # cv2 knows no int32 morphology; float32 represents every label up to 2**24 exactly.
    values = compact.astype(np.float32)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * thickness + 1, 2 * thickness + 1))
    mixed = cv2.dilate(values, kernel) != cv2.erode(values, kernel)
    return np.asarray(mixed & (compact > 0), np.bool_)
