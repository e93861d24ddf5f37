"""How an image meets the window the network was trained on: in tiles, or resized or padded to a single window.

Resizing and padding are for class maps (objective semantic), where a small picture of the whole field is enough; cells
of their own need the image's own scale, which tiles keep.
"""

from __future__ import annotations

from typing import Any, Literal, assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.images.geometry.resize import resize_image, resize_labels, resize_maps

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


MAX_UPSCALE = 8.0


def enlarge(z: Float32, window: int) -> Float32:
    """Scale an image (H, W) smaller than the window so that its short side equals it; the aspect is kept.

    Past a factor of 8 the rest is filled by repeating the edge: a strip a few pixels high holds no cell to enlarge.
    """
    height, width = z.shape
    scale = min(window / min(height, width), MAX_UPSCALE)
    if scale > 1:
        target = (max(1, round(width * scale)), max(1, round(height * scale)))
        z = np.asarray(cv2.resize(z, target, interpolation=cv2.INTER_CUBIC), np.float32)
    missing = [max(0, window - length) for length in z.shape]
    return np.pad(z, [(0, missing[0]), (0, missing[1])], mode="edge") if any(missing) else z


def mirrored(z: Float32, window: int) -> Float32:
    """An image (H, W) continued by its mirror image below and to the right until both sides fill the window."""
    missing = [(0, max(0, window - length)) for length in z.shape]
    return np.ascontiguousarray(np.pad(z, missing, mode="symmetric")) if any(m for _, m in missing) else z


def reduce(maps: Float32, size: tuple[int, int], window: int) -> Float32:
    """Undo `enlarge`: maps (K, h, w) of the enlarged image back at the size (H, W) of the original."""
    scale = min(window / min(size), MAX_UPSCALE)
    if scale > 1:
        maps = maps[:, : max(1, round(size[0] * scale)), : max(1, round(size[1] * scale))]
    return resize_maps(maps, size)
