"""Multi-crop augmentation of gray 8-bit images with OpenCV (paper section 3.3.4).

The random state comes from (seed, global sample number) alone, so a crop does not depend on the number of workers or
ranks, nor on when the run was resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.pretrain.config import AugmentConfig

UInt8Array = npt.NDArray[np.uint8]

_TRIES = 10
_CROP_STREAM = 0  # keeps these numbers apart from those of data order and masks, see data.py
_BLUR_KERNEL = 9  # px, as upstream's GaussianBlur
_SOLARIZE_THRESHOLD = 128
# A shrink by more than this aliases visibly with OpenCV's 4-tap bicubic, so the image is low-passed before it.
_ALIASING_SHRINK = 1.3
# Sigma in px over sqrt(s^2 - 1): on micrographs 1.3 gray levels (RMS) or less from Pillow's antialiased bicubic
_PREFILTER = 0.38


@dataclass(frozen=True)
class Crops:
    """One image's crops."""

    global_crops: UInt8Array  # [2, G, G]
    local_crops: UInt8Array  # [L, l, l]


def sample_rng(seed: int, sample: int) -> np.random.Generator:
    """The random numbers of the crops of one sample (0 or more) of one run."""
    return np.random.default_rng((seed, _CROP_STREAM, sample))


def multi_crop(image: UInt8Array, config: AugmentConfig, rng: np.random.Generator) -> Crops:
    """Two global and L local crops of a gray image.

    Args:
        image: uint8 (H, W), any size.
        config: sizes, scales and probabilities.
        rng: random numbers, see `sample_rng`.
    """
    size, small = config.global_size, config.local_size
    first = _view(image, size, config.global_scale, config, rng)
    second = _view(image, size, config.global_scale, config, rng)
    if rng.random() < config.solarize_probability:
        second = solarize(second)
    local = [_view(image, small, config.local_scale, config, rng) for _ in range(config.local_crops)]
    empty = np.empty((0, small, small), np.uint8)
    return Crops(np.stack([first, second]), np.stack(local) if local else empty)


def _view(
    image: UInt8Array, size: int, scale: tuple[float, float], config: AugmentConfig, rng: np.random.Generator
) -> UInt8Array:
    y, x, height, width = crop_window((image.shape[0], image.shape[1]), scale, config.aspect, rng)
    view = resize(image[y : y + height, x : x + width], size)
    view = _flip(view, config, rng)
    if rng.random() < config.jitter_probability:
        view = _jitter(view, config, rng)
    if rng.random() < config.blur_probability:
        sigma = rng.uniform(*config.blur_sigma)
        view = _uint8(cv2.GaussianBlur(view, (_BLUR_KERNEL, _BLUR_KERNEL), sigma, borderType=cv2.BORDER_REFLECT_101))
    return view


def crop_window(
    shape: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A window (y, x, height, width) with random area and log-uniform aspect, as torchvision's RandomResizedCrop."""
    rows, columns = shape
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_TRIES):
        area = rows * columns * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            y, x = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            return y, x, height, width
    # an elongated image: the largest central window with an allowed aspect
    height = min(rows, max(1, round(columns / aspect[0])))
    width = min(columns, max(1, round(rows * aspect[1])))
    return (rows - height) // 2, (columns - width) // 2, height, width


def resize(image: UInt8Array, size: int) -> UInt8Array:
    """Bicubic to size x size px, with a low-pass first where the image shrinks enough to alias."""
    shrink = (image.shape[1] / size, image.shape[0] / size)  # x, y
    if max(shrink) > _ALIASING_SHRINK:
        kernel_x, kernel_y = (_low_pass(s) for s in shrink)
        # reading beyond the window would make a crop depend on what it does not show
        border = cv2.BORDER_REFLECT_101 | cv2.BORDER_ISOLATED
        image = _uint8(cv2.sepFilter2D(image, -1, kernel_x, kernel_y, borderType=border))
    return _uint8(cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC))


def _low_pass(shrink: float) -> npt.NDArray[np.float64]:
    sigma = _PREFILTER * math.sqrt(max(shrink * shrink - 1, 1e-6))
    return np.asarray(cv2.getGaussianKernel(3 if sigma < 0.6 else 5, sigma))


def _flip(view: UInt8Array, config: AugmentConfig, rng: np.random.Generator) -> UInt8Array:
    if rng.random() < config.horizontal_flip:
        view = _uint8(cv2.flip(view, 1))
    if rng.random() < config.vertical_flip:
        view = _uint8(cv2.flip(view, 0))
    if config.rotate90:
        view = np.ascontiguousarray(np.rot90(view, int(rng.integers(4))))
    return view


def _jitter(view: UInt8Array, config: AugmentConfig, rng: np.random.Generator) -> UInt8Array:
    """Brightness and contrast by random factors, in random order, each clipped to 0-255."""
    brightness = rng.uniform(1 - config.brightness, 1 + config.brightness)
    contrast = rng.uniform(1 - config.contrast, 1 + config.contrast)
    if rng.random() < 0.5:
        return adjust_contrast(adjust_brightness(view, brightness), contrast)
    return adjust_brightness(adjust_contrast(view, contrast), brightness)


def adjust_brightness(view: UInt8Array, factor: float) -> UInt8Array:
    """factor x value, rounded and clipped."""
    return _uint8(cv2.addWeighted(view, factor, view, 0, 0))


def adjust_contrast(view: UInt8Array, factor: float) -> UInt8Array:
    """mean + factor x (value - mean), rounded and clipped; the mean of this view, rounded as Pillow rounds it."""
    mean = int(cv2.mean(view)[0] + 0.5)
    return _uint8(cv2.addWeighted(view, factor, view, 0, (1 - factor) * mean))


def solarize(view: UInt8Array) -> UInt8Array:
    """Invert values of 128 and above."""
    values = np.arange(256)
    return _uint8(cv2.LUT(view, np.where(values >= _SOLARIZE_THRESHOLD, 255 - values, values).astype(np.uint8)))


def _uint8(array: npt.NDArray[np.generic]) -> UInt8Array:
    return array  # type: ignore[return-value]  # OpenCV's stubs lose the dtype
