"""How an image meets the window the network was trained on: in tiles, or resized or padded to a single window.

Resizing and padding are for class maps (objective semantic), where a small picture of the whole field is enough; cells
of their own need the image's own scale, which tiles keep.
"""

from __future__ import annotations

from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from dinocell.data.crops import resize_image, resize_labels
from dinocell.inference.tiling import resize_maps

Float32 = NDArray[np.float32]
Fit = Literal["tile", "resize", "pad"]
"""tile: windows at the image's scale; resize: the image squashed to one window; pad: shrunk with its aspect, filled."""


def content_size(size: tuple[int, int], window: int, fit: Fit) -> tuple[int, int]:
    """(height, width) that an image of `size` takes after `fit_plane`, without the padding."""
    match fit:
        case "tile":
            return size
        case "resize":
            return window, window
        case "pad":
            scale = window / max(size)
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    assert_never(fit)


def fit_plane(z: Float32, window: int, fit: Fit) -> Float32:
    """A preprocessed image (H, W) as the network gets it; `pad` fills below and to the right with 0, the mean."""
    if fit == "tile":
        return z
    fitted = np.asarray(resize_image(z, content_size(_shape(z), window, fit)), np.float32)
    return _padded(fitted, window)


def fit_labels(labels: NDArray[Any], window: int, fit: Fit) -> NDArray[Any]:
    """Labels (H, W), or a mask, for the image that `fit_plane` gives, by nearest neighbour; 0 in the padding."""
    if fit == "tile":
        return labels
    return _padded(resize_labels(labels, content_size(_shape(labels), window, fit)), window)


def padding(size: tuple[int, int], window: int, fit: Fit) -> NDArray[np.bool_] | None:
    """Which pixels of a fitted image of `size` are padding, (window, window); None when there is none."""
    height, width = content_size(size, window, fit)
    if fit == "tile" or (height, width) == (window, window):
        return None
    outside = np.ones((window, window), bool)
    outside[:height, :width] = False
    return outside


def unfit_maps(maps: Float32, size: tuple[int, int], window: int, fit: Fit) -> Float32:
    """Maps (K, h, w) of a fitted image at its own size (H, W): without the padding, resampled."""
    if fit == "pad":
        height, width = content_size(size, window, fit)
        maps = maps[:, :height, :width]
    return resize_maps(np.ascontiguousarray(maps), size)


def _padded(array: NDArray[Any], window: int) -> NDArray[Any]:
    bottom, right = window - array.shape[0], window - array.shape[1]
    return np.pad(array, [(0, bottom), (0, right)]) if bottom or right else array


def _shape(array: NDArray[np.generic]) -> tuple[int, int]:
    return int(array.shape[0]), int(array.shape[1])
