"""A trained network applied to the windows of images of any size, one forward pass at a time, and its maps stitched."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dinocell.core import device as devices
from dinocell.core.arrays import Float32
from dinocell.core.errors import ConfigError
from dinocell.images.mapped import copy_by_bands, release
from dinocell.models import SegmentationModel
from dinocell.predict.large.regions import Source
from dinocell.predict.large.work_folder import Scratch
from dinocell.predict.views import averaged
from dinocell.predict.windows import OVERLAP, WINDOW, Stitcher, Window, covering_windows, starts, taper

Key = TypeVar("Key")
Item = TypeVar("Item")
CPU = torch.device("cpu")
OnWindows = Callable[[int, int], None]
"""Called with the number of windows that are done and of all that are known, before the first forward and after each;
what it raises ends the work."""


def _silent(done: int, total: int) -> None:
    """Report nothing."""


def counted(tell: OnWindows, total: int) -> OnWindows:
    """Report several pieces of work as one, of `total` windows at most."""
    before = last = 0

    def told(done: int, _: int) -> None:
        nonlocal before, last
        if not done:  # the next piece begins
            before += last
        last = done
        tell(before + done, total)

    return told


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def run_batch(
    model: Callable[[Tensor], Tensor], batch: Sequence[Float32], device: torch.device, dtype: torch.dtype
) -> Float32:
    """Run B windows (h, w) of equal size, in halves if memory is short; returns maps (B, K, h, w) float32."""
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(batch)[:, None], np.float32))  # [B, 1, h, w]
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


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A network, and how it is run.

    Threads may share one: a single forward runs at a time. Images come as the frames that `Placement` makes of them.

    Attributes:
        network: maps windows [B, 1, window, window] to [B, K, window, window].
        window: window side in px, the crop that the network was trained on.
        overlap: fewest px shared by neighbouring windows.
        batch_size: windows per forward.
        device: of the network.
        dtype: autocast type of the forward; maps are summed in float32.
        views: test-time augmentation, see `AveragedViews`; the time grows by as much.
        vectors: maps that are the components (y, x) of vectors, see `AveragedViews`.
        on_windows: progress, see `OnWindows`.
    """

    network: nn.Module
    window: int = WINDOW
    overlap: int = OVERLAP
    batch_size: int = 1
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    views: int = 1
    vectors: Sequence[tuple[int, int]] = ()
    on_windows: OnWindows = _silent
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def maps(self, z: Float32) -> Float32:
        """Predict the maps (K, H, W) float32 of one frame z (H, W); see `stream`."""
        _, maps = next(self.stream([(0, z)]))
        return maps

    def stream(self, images: Iterable[tuple[Key, Float32]]) -> Iterator[tuple[Key, Float32]]:
        """Predict the maps of many frames, windows batched across image borders; in the order given.

        Args:
            images: (key, z) pairs, z (H, W) float32, both sides at least the window.

        Yields:
            (key, maps), maps (K, H, W) float32 at the size of z.

        Raises:
            ValueError: a frame is not two-dimensional, or smaller than the window.
        """
        in_flight: deque[_Frame[Key]] = deque()
        pending: list[tuple[_Frame[Key], Window]] = []
        done = total = 0

        def forward(batch: list[tuple[_Frame[Key], Window]]) -> None:
            nonlocal done
            predictions = self._forward([frame.z[at.slices] for frame, at in batch])
            for (frame, at), prediction in zip(batch, predictions, strict=True):
                if frame.stitcher is None:
                    frame.stitcher = Stitcher(len(prediction), _size(frame.z), self.window, self.overlap)
                frame.stitcher.add(at, prediction)
                frame.remaining -= 1
            done += len(batch)
            self.on_windows(done, total)

        def finished() -> Iterator[tuple[Key, Float32]]:
            while in_flight and in_flight[0].remaining == 0:
                frame = in_flight.popleft()
                assert frame.stitcher is not None
                yield frame.key, frame.stitcher.maps

        for key, z in images:
            self._check(z)
            tiles = self._tiles(_size(z))
            in_flight.append(_Frame(key, z, len(tiles)))
            pending += [(in_flight[-1], at) for at in tiles]
            total += len(tiles)
            self.on_windows(done, total)
            while len(pending) >= self.batch_size:
                forward(pending[: self.batch_size])
                del pending[: self.batch_size]
            yield from finished()
        if pending:
            forward(pending)
        yield from finished()

    def large(self, source: Source, channels: int, scratch: Scratch | None = None) -> Iterator[tuple[int, Float32]]:
        """Predict the maps of a large frame, equal to `maps` bit for bit, one row of windows after the other.

        Args:
            source: the frame, read by region, both sides at least the window.
            channels: number of maps.
            scratch: files of the maps and unfinished rows; rows that an earlier run finished are not repeated.

        Yields:
            Rows of the frame whose maps are final, and the maps (K, H, W) in scratch.
        """
        scratch = scratch or Scratch()
        height, width = source.size
        maps = scratch.array("maps", (channels, height, width), np.float32, "network")
        # The row of windows at work and the one before it, which a killed run continues from.
        shape = channels, self.window, width
        bands = [scratch.array(f"band{side}", shape, np.float32, "network") for side in range(2)]
        first = scratch.done("network")
        tops = [*starts(height, self.window, self.overlap), height]
        if first == len(tops) - 1:
            yield height, maps
        tiles = self._tiles(source.size)
        windows = sum(at.row < first for at in tiles)
        self.on_windows(windows, len(tiles))
        for row, group in groupby(tiles[windows:], key=lambda at: at.row):
            band, before = bands[row % 2], bands[1 - row % 2]
            shared = self.window - (tops[row] - tops[row - 1]) if row else 0
            copy_by_bands(band[:, :shared], before[:, self.window - shared :])
            copy_by_bands(band[:, shared:], np.broadcast_to(np.float32(0), band[:, shared:].shape))
            for batch in _batches(list(group), self.batch_size):
                predictions = self._forward([source.region(*at.slices) for at in batch])
                for at, prediction in zip(batch, predictions, strict=True):
                    band[:, :, at.x : at.x + at.width] += prediction * taper(at, source.size, self.window, self.overlap)
                release(band)
                windows += len(batch)
                self.on_windows(windows, len(tiles))
            done = tops[row + 1] - tops[row]  # rows that no later window touches
            copy_by_bands(maps[:, tops[row] : tops[row + 1]], band[:, :done])
            scratch.commit(maps, band, network=row + 1)
            yield tops[row + 1], maps

    def single(self, windows: Sequence[Float32]) -> Float32:
        """Predict the maps (n, K, h, w) of n windows (h, w) that belong to no frame."""
        done: list[Float32] = []
        self.on_windows(0, len(windows))
        for batch in _batches(windows, self.batch_size):
            done += list(self._forward(batch))
            self.on_windows(len(done), len(windows))
        return np.stack(done)

    def tokens(
        self, region: Callable[[Window], Float32], tiles: Sequence[Window]
    ) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        """Compute the patch tokens that the decoder gets in some windows of a frame, without test-time augmentation.

        Args:
            region: the frame (h, w) in a window.
            tiles: the windows.

        Yields:
            (window, tokens), tokens (N, D) float32.

        Raises:
            ConfigError: the network has no patch tokens.
        """
        encode, done = self.backboned.encode, 0
        self.on_windows(0, len(tiles))
        for batch in _batches(tiles, self.batch_size):
            yield from zip(batch, self._run(encode, [region(at) for at in batch]), strict=True)
            done += len(batch)
            self.on_windows(done, len(tiles))

    @property
    def backboned(self) -> SegmentationModel:
        """The network, if its backbone gives patch tokens.

        Raises:
            ConfigError: it has none.
        """
        if not isinstance(self.network, SegmentationModel):
            raise ConfigError("embeddings: this network has no backbone whose tokens could be averaged")
        return self.network

    def _tiles(self, size: tuple[int, int]) -> list[Window]:
        return covering_windows(size, self.window, self.overlap)

    @cached_property
    def _averaged(self) -> nn.Module:
        return averaged(self.network, self.views, vectors=self.vectors)

    def _forward(self, batch: Sequence[Float32]) -> Float32:
        return self._run(self._averaged, batch)

    def _run(self, function: Callable[[Tensor], Tensor], batch: Sequence[Float32]) -> Float32:
        # The mode is that of the network: the wrapper of views would put it back to what it was when it was wrapped.
        with self.lock, evaluating(self.network):
            return run_batch(function, batch, self.device, self.dtype)

    def _check(self, z: Float32) -> None:
        if z.ndim != 2 or min(z.shape) < self.window:
            raise ValueError(f"windows of {self.window} px are cut from planes (H, W) at least as large, not {z.shape}")


@dataclass
class _Frame(Generic[Key]):
    """One frame on its way through the network."""

    key: Key
    z: Float32
    remaining: int
    stitcher: Stitcher | None = None


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _size(z: Float32) -> tuple[int, int]:
    return z.shape[0], z.shape[1]
