"""Focus of a plane: variance of its Laplacian."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from dinocell.images.image import Array


def laplacian_variance(plane: Array) -> float:
    """Variance of the 4-neighbour Laplacian (cv2.Laplacian, ksize 1) of a plane (H, W); NaN counts as 0."""
    values = np.nan_to_num(plane.astype(np.float32, copy=False), posinf=0, neginf=0)
    deviation = cv2.meanStdDev(cv2.Laplacian(values, cv2.CV_32F, ksize=1))[1]
    return float(deviation[0, 0]) ** 2


def best_focus(stack: Iterable[Array]) -> int:
    """Index of the plane of a stack (Z, H, W) with the highest Laplacian variance relative to its mean square.

    The ratio keeps a dim sharp plane ahead of a bright blurred one.
    """
    scores = []
    for plane in stack:
        values = np.nan_to_num(plane.astype(np.float32, copy=False), posinf=0, neginf=0)
        power = float(np.var(values, dtype=np.float64))
        scores.append(laplacian_variance(values) / power if power > 0 else 0.0)
    return int(np.argmax(scores))
