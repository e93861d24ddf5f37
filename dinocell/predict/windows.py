"""Overlapping windows over an image of any size, and the maps stitched back without seams.

The windows of one axis are spread evenly, so that none runs twice and the last one is never a near-duplicate of the
one before it. Their weights fall linearly to the window's border and sum to one at every pixel; because the windows
form a grid, the 2-D weight is the product of two 1-D weights and no division or weight image is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dinocell.core.arrays import Float32

WINDOW = 512
OVERLAP = 128


class Window(NamedTuple):
    """One window: its corner and size in pixels, and its row and column in the grid of windows."""

    y: int
    x: int
    height: int
    width: int
    row: int
    column: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The window as (rows, columns) of an image."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@lru_cache(maxsize=256)
def starts(length: int, window: int, overlap: int) -> tuple[int, ...]:
    """Window positions along one axis: the fewest that cover it with at least `overlap` shared pixels, spread evenly.

    Args:
        length: axis length in pixels.
        window: window length in pixels; an axis shorter than it gets one window, as long as the axis.
        overlap: fewest pixels that two neighbours share (paper §3.2.4: 128), below `window`.
    """
    if length < 1 or window < 1 or not 0 <= overlap < window:
        raise ValueError(f"no windows of {window} px overlapping by {overlap} px fit an axis of {length} px")
    if length <= window:
        return (0,)
    count = math.ceil((length - window) / (window - overlap)) + 1
    return tuple(round(index * (length - window) / (count - 1)) for index in range(count))


@lru_cache(maxsize=64)
def _axis_weights(length: int, window: int, overlap: int) -> Float32:
    """Blending weights of each window of an axis, (count, window) float32, that sum to one at every pixel."""
    positions = starts(length, window, overlap)
    extent = min(window, length)
    ramp = np.minimum(np.arange(extent), np.arange(extent)[::-1]) + 0.5
    total = np.zeros(length)
    for start in positions:
        total[start : start + extent] += ramp
    weights = np.stack([ramp / total[start : start + extent] for start in positions]).astype(np.float32)
    weights.flags.writeable = False
    return weights


def covering_windows(size: tuple[int, int], window: int = WINDOW, overlap: int = OVERLAP) -> list[Window]:
    """Unique windows that cover an image of `size` (height, width), row by row.

    Two neighbours share at least `overlap` pixels. A window never leaves the image: where the image is shorter than
    `window`, the window is cut to it.
    """
    height, width = min(window, size[0]), min(window, size[1])
    return [
        Window(y, x, height, width, row, column)
        for row, y in enumerate(starts(size[0], window, overlap))
        for column, x in enumerate(starts(size[1], window, overlap))
    ]


def taper(at: Window, size: tuple[int, int], window: int = WINDOW, overlap: int = OVERLAP) -> Float32:
    """Blending weight (height, width) of one window; over all windows of the image they sum to one at each pixel."""
    rows = _axis_weights(size[0], window, overlap)[at.row]
    columns = _axis_weights(size[1], window, overlap)[at.column]
    return np.outer(rows, columns)


class Stitcher:
    """Sums tapered windows into maps (K, H, W) float32; complete once every window has been added."""

    def __init__(self, channels: int, size: tuple[int, int], window: int = WINDOW, overlap: int = OVERLAP) -> None:
        self.maps: Float32 = np.zeros((channels, *size), np.float32)
        self._size, self._window, self._overlap = size, window, overlap

    def add(self, at: Window, prediction: Float32) -> None:
        """Add the prediction (K, height, width) of one window."""
        self.maps[(slice(None), *at.slices)] += prediction * taper(at, self._size, self._window, self._overlap)
