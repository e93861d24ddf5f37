"""Label images with known difficulties, shared by the objectives' tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

Labels = np.ndarray


def disk_image(size: int, disks: list[tuple[float, float, float]]) -> Labels:
    """Disks (y, x, radius), numbered 1…n; later ones only take free pixels."""
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for number, (cy, cx, radius) in enumerate(disks, 1):
        labels[((y - cy) ** 2 + (x - cx) ** 2 <= radius**2) & (labels == 0)] = number
    return labels


def random_voronoi(seed: int, size: int = 64, cells: int = 9, gap: float = 0.0) -> Labels:
    """Cells that touch (gap 0) or keep `gap` px apart: the Voronoi regions of random points, cut to disks."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size, (cells, 2))
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1])
    order = np.argsort(distance, axis=2)
    nearest, second = (np.take_along_axis(distance, order[..., k : k + 1], 2)[..., 0] for k in (0, 1))
    labels = (order[..., 0] + 1).astype(np.int32)
    labels[(second - nearest < gap) | (nearest > size / 5)] = 0
    return labels


@pytest.fixture
def disks() -> Callable[..., Labels]:
    return disk_image


@pytest.fixture
def voronoi() -> Callable[..., Labels]:
    return random_voronoi


@pytest.fixture
def matches() -> Callable[..., float]:
    """AP at an IoU threshold, TP / (TP + FP + FN), by exhaustive comparison."""

    def average_precision(truth: Labels, prediction: Labels, threshold: float = 0.9) -> float:
        a, b = np.unique(truth[truth > 0]), np.unique(prediction[prediction > 0])
        hits = 0
        for number in a:
            mask = truth == number
            for other in np.unique(prediction[mask]):
                found = prediction == other
                hits += bool(other > 0 and (mask & found).sum() / (mask | found).sum() > threshold)
        return hits / max(len(a) + len(b) - hits, 1)

    return average_precision
