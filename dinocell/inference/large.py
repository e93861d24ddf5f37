"""Images of any size in bounded memory: streamed windows, maps in a scratch file, decoding in blocks.

What is held at a time is one row of windows, one block and the image itself (nothing of it, if it is memory-mapped).
Maps and labels lie in unnamed scratch files that vanish with the result: 4 bytes a pixel for every map and for the
labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell import log
from dinocell.data.scratch import release, scratch_array
from dinocell.inference.blocks import BLOCK, blocks, decode_blocks
from dinocell.inference.planes import InputPlane
from dinocell.inference.result import MAX_UINT16, SegmentationResult
from dinocell.inference.streaming import StreamedInput
from dinocell.inference.tiling import evaluating, run_batch, starts, taper, windows
from dinocell.objectives import ObjectiveConfig, build_objective

Float32 = NDArray[np.float32]


def predict_large(
    model: nn.Module,
    source: StreamedInput,
    window: int,
    overlap: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None = None,
) -> Iterator[tuple[int, Float32]]:
    """Maps of a large image, equal to `predict_maps` bit for bit; yields (rows finished, maps) after every row.

    Args:
        source: the image, both sides at least `window`.
        folder: where the scratch file lies.
        model, window, overlap, batch_size, device, dtype: as for `predict_maps`.

    Yields:
        Image rows whose maps are final, and the maps (K, H, W) in scratch.
    """
    height, width = source.size
    maps: Float32 | None = None
    band = np.zeros((0, window, width), np.float32)
    tops = [*starts(height, window, overlap), height]
    with evaluating(model):
        for row, tiles in groupby(windows(source.size, window, overlap), key=lambda at: at.row):
            waiting = list(tiles)
            while waiting:
                batch, waiting = waiting[:batch_size], waiting[batch_size:]
                predictions = run_batch(model, [source.region(*at.slices) for at in batch], device, dtype)
                if maps is None:
                    maps = scratch_array((predictions.shape[1], height, width), np.float32, folder)
                    band = np.zeros((predictions.shape[1], window, width), np.float32)
                for at, prediction in zip(batch, predictions, strict=True):
                    band[:, :, at.x : at.x + at.width] += prediction * taper(at, source.size, window, overlap)
            assert maps is not None
            done = tops[row + 1] - tops[row]  # rows that no later window touches
            maps[:, tops[row] : tops[row + 1]] = band[:, :done]
            band[:, : window - done] = band[:, done:].copy()
            band[:, window - done :] = 0
            release(maps)
            yield tops[row + 1], maps


def segment_large(
    model: nn.Module,
    plane: InputPlane,
    source: StreamedInput,
    config: ObjectiveConfig,
    *,
    window: int,
    overlap: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None = None,
) -> SegmentationResult:
    """Cells of an image of any size (both sides at least `window`), with progress; labels and maps in scratch files.

    The cells are those of whole-image decoding up to their numbers (see `blocks`).
    """
    if source.constant:
        log.warning("the image is constant: no cells")
        empty = scratch_array(source.size, np.uint16, folder)
        return SegmentationResult(labels=empty, maps=None, objective=build_objective(config), plane=plane)
    rows = predict_large(model, source, window, overlap, batch_size, device, dtype, folder)
    maps = np.zeros(0, np.float32)
    for _, partial in log.progress(rows, "network", len(starts(source.size[0], window, overlap)), "rows of windows"):
        maps = partial
    labels = scratch_array(source.size, np.uint32, folder)
    steps = decode_blocks(maps, config, labels, BLOCK)
    count = 0
    for found in log.progress(steps, "decoding", len(blocks(source.size, BLOCK)), "blocks"):
        count = found
        release(maps)
        release(labels)
    labels = _cleaned(labels, plane.gray, count, folder)
    return SegmentationResult(labels=labels, maps=maps, objective=build_objective(config), plane=plane)


def _cleaned(labels: NDArray[Any], gray: NDArray[Any], count: int, folder: Path | None) -> NDArray[Any]:
    """Labels without cells on NaN pixels, as uint16 if they fit."""
    small = count <= MAX_UINT16
    target = scratch_array(labels.shape, np.uint16, folder) if small else labels
    for top in range(0, len(labels), BLOCK):
        rows = slice(top, top + BLOCK)
        part = labels[rows]
        if gray.dtype.kind == "f":
            part = np.where(np.isfinite(gray[rows]), part, 0)
        target[rows] = part
        release(labels)
        release(target)
    return target
