"""A network applied to windows of images of any size, and its maps stitched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from dinocell.core import device as devices
from dinocell.predict.windows import OVERLAP, WINDOW, Float32, Stitcher, Window, covering_windows

Key = TypeVar("Key")


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
    z: Float32
    remaining: int
    stitcher: Stitcher | None = None


def _prepare(key: Key, z: Float32, window: int, overlap: int) -> tuple[_Image[Key], list[Window]]:
    if z.ndim != 2 or min(z.shape) < window:
        raise ValueError(f"windows of {window} px are cut from planes (H, W) at least as large, not {z.shape}")
    tiles = covering_windows(_shape(z), window, overlap)
    return _Image(key, np.asarray(z, np.float32), len(tiles)), tiles


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
        images: (key, z) pairs, z (H, W) float32 as `Placement.image` gives it: both sides at least the window.
        window: window side in pixels, the crop that the model was trained on.
        overlap: fewest pixels shared by neighbouring windows.
        batch_size: windows per forward.
        device: where to run; default: where the model's parameters are.
        dtype: autocast type of the forward; the maps are summed in float32.

    Yields:
        (key, maps), maps (K, H, W) float32 at the size of z.

    Raises:
        ValueError: a plane is not two-dimensional, or smaller than the window.
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
            yield image.key, image.stitcher.maps

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
    """Maps (K, H, W) float32 of one image z (H, W) that `Placement` made fit; see `predict_stream`."""
    _, maps = next(predict_stream(model, [(0, z)], window, overlap, batch_size, device, dtype))
    return maps


def _shape(z: Float32) -> tuple[int, int]:
    return z.shape[0], z.shape[1]


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
