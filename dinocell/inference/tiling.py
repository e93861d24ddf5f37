"""Overlapping windows over an image of any size, and the maps stitched back without seams.

The windows of one axis are spread evenly, so that none runs twice and the last one is never a near-duplicate of the
one before it. Their weights fall linearly to the window's border and sum to one at every pixel; because the windows
form a grid, the 2-D weight is the product of two 1-D weights and no division or weight image is needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell import device as devices

WINDOW = 512
OVERLAP = 128
MAX_UPSCALE = 8.0

Float32 = NDArray[np.float32]
Key = TypeVar("Key")


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


def windows(size: tuple[int, int], window: int = WINDOW, overlap: int = OVERLAP) -> list[Window]:
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


def resize_maps(maps: Float32, size: tuple[int, int]) -> Float32:
    """Maps (K, h, w) resampled to (K, *size): area-averaged when shrinking, bilinear when growing."""
    if maps.shape[1:] == size:
        return maps
    shrinking = size[0] * size[1] < maps.shape[1] * maps.shape[2]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.stack([cv2.resize(plane, size[::-1], interpolation=method) for plane in maps]).astype(np.float32)


def reduce(maps: Float32, size: tuple[int, int], window: int) -> Float32:
    """Undo `enlarge`: maps (K, h, w) of the enlarged image back at the size (H, W) of the original."""
    scale = min(window / min(size), MAX_UPSCALE)
    if scale > 1:
        maps = maps[:, : max(1, round(size[0] * scale)), : max(1, round(size[1] * scale))]
    return resize_maps(maps, size)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def run_batch(model: nn.Module, batch: list[Float32], device: torch.device, dtype: torch.dtype) -> Float32:
    """Maps (B, K, h, w) float32 of B windows (h, w) of equal size; in one forward, or in halves if memory is short."""
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(batch)[:, None]))  # [B, 1, h, w]
    try:
        with devices.autocast(device, dtype):
            prediction = model(stacked.to(device))  # [B, K, h, w]
        return np.asarray(prediction.float().cpu().numpy(), np.float32)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Outside the handler, which would keep the failed forward's tensors alive.
    half = len(batch) // 2
    return np.concatenate([run_batch(model, part, device, dtype) for part in (batch[:half], batch[half:])])


@dataclass
class _Image(Generic[Key]):
    """One image on its way through the network."""

    key: Key
    size: tuple[int, int]
    z: Float32
    remaining: int
    stitcher: Stitcher | None = None


def _prepare(key: Key, z: Float32, window: int, overlap: int) -> tuple[_Image[Key], list[Window]]:
    if z.ndim != 2:
        raise ValueError(f"an image plane has the shape (H, W), not {z.shape}")
    enlarged = enlarge(np.asarray(z, np.float32), window)
    tiles = windows(enlarged.shape, window, overlap)
    return _Image(key, z.shape, enlarged, len(tiles)), tiles


def predict_stream(
    model: nn.Module,
    images: Iterable[tuple[Key, Float32]],
    window: int = WINDOW,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Key, Float32]]:
    """Maps of many preprocessed images, with their windows batched across image borders; in the order given.

    Args:
        model: maps windows [B, 1, window, window] to [B, K, window, window].
        images: (key, z) pairs, z (H, W) float32 as `dinocell.data.preprocess` returns it.
        window: window side in pixels, the crop that the model was trained on.
        overlap: fewest pixels shared by neighbouring windows.
        batch_size: windows per forward.
        device: where to run; default: where the model's parameters are.
        dtype: autocast type of the forward; the maps are summed in float32.

    Yields:
        (key, maps), maps (K, H, W) float32 at the size of z.
    """
    where = _device_of(model) if device is None else torch.device(device)
    in_flight: deque[_Image[Key]] = deque()
    pending: list[tuple[_Image[Key], Window]] = []

    def forward(batch: list[tuple[_Image[Key], Window]]) -> None:
        with evaluating(model):
            predictions = run_batch(model, [image.z[at.slices] for image, at in batch], where, dtype)
        for (image, at), prediction in zip(batch, predictions, strict=True):
            if image.stitcher is None:
                image.stitcher = Stitcher(len(prediction), _shape(image.z), window, overlap)
            image.stitcher.add(at, prediction)
            image.remaining -= 1

    def finished() -> Iterator[tuple[Key, Float32]]:
        while in_flight and in_flight[0].remaining == 0:
            image = in_flight.popleft()
            assert image.stitcher is not None
            yield image.key, reduce(image.stitcher.maps, image.size, window)

    for key, z in images:
        image, tiles = _prepare(key, z, window, overlap)
        in_flight.append(image)
        pending += [(image, at) for at in tiles]
        while len(pending) >= batch_size:
            forward(pending[:batch_size])
            del pending[:batch_size]
        yield from finished()
    if pending:
        forward(pending)
    yield from finished()


def predict_maps(
    model: nn.Module,
    z: Float32,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float32:
    """Maps (K, H, W) float32 of one preprocessed image z (H, W) of any size; see `predict_stream`.

    An image smaller than the window is enlarged for the network (short side = window, aspect kept) and its maps are
    given back at the image's own size.
    """
    _, maps = next(predict_stream(model, [(0, z)], window, overlap, batch_size, device, dtype))
    return maps


def _shape(z: Float32) -> tuple[int, int]:
    return z.shape[0], z.shape[1]


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
