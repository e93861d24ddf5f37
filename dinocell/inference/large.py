"""Images of any size in bounded memory: streamed windows, maps in a scratch file, decoding in blocks.

What is held at a time is some windows and one block. The image, the maps and the labels lie in scratch files: 4 bytes
a pixel for every map and for the labels. The work can be interrupted at any time and continued (see `resume`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell import log
from dinocell.data.scratch import band_rows, copy_by_bands, release
from dinocell.inference.blocks import BLOCK, blocks, decode_blocks
from dinocell.inference.planes import InputPlane
from dinocell.inference.resample import Picture, ScaledMaps
from dinocell.inference.result import MAX_UINT16, SegmentationResult
from dinocell.inference.resume import Scratch
from dinocell.inference.tiling import evaluating, run_batch, starts, taper, windows
from dinocell.objectives import ObjectiveConfig, build_objective

Float32 = NDArray[np.float32]


def predict_large(
    model: nn.Module,
    source: Picture,
    channels: int,
    window: int,
    overlap: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Scratch | None = None,
) -> Iterator[tuple[int, Float32]]:
    """Maps of a large image, equal to `predict_maps` bit for bit; yields (rows finished, maps) after every row.

    Args:
        source: the image, both sides at least `window`.
        channels: number of maps.
        scratch: where maps and unfinished rows lie; rows that an earlier run finished are not run again.
        model, window, overlap, batch_size, device, dtype: as for `predict_maps`.

    Yields:
        Image rows whose maps are final, and the maps (K, H, W) in scratch.
    """
    scratch = scratch or Scratch()
    height, width = source.size
    maps = scratch.array("maps", (channels, height, width), np.float32, "network")
    # The row of windows at work and the one before it, which a killed run continues from.
    bands = [scratch.array(f"band{side}", (channels, window, width), np.float32, "network") for side in range(2)]
    first = scratch.done("network")
    tops = [*starts(height, window, overlap), height]
    if first == len(tops) - 1:
        yield height, maps
    with evaluating(model):
        for row, tiles in groupby(windows(source.size, window, overlap), key=lambda at: at.row):
            if row < first:
                continue
            band, before = bands[row % 2], bands[1 - row % 2]
            shared = window - (tops[row] - tops[row - 1]) if row else 0
            copy_by_bands(band[:, :shared], before[:, window - shared :])
            copy_by_bands(band[:, shared:], np.broadcast_to(np.float32(0), band[:, shared:].shape))
            waiting = list(tiles)
            while waiting:
                batch, waiting = waiting[:batch_size], waiting[batch_size:]
                predictions = run_batch(model, [source.region(*at.slices) for at in batch], device, dtype)
                for at, prediction in zip(batch, predictions, strict=True):
                    band[:, :, at.x : at.x + at.width] += prediction * taper(at, source.size, window, overlap)
                release(band)
            done = tops[row + 1] - tops[row]  # rows that no later window touches
            copy_by_bands(maps[:, tops[row] : tops[row + 1]], band[:, :done])
            scratch.commit(maps, band, network=row + 1)
            yield tops[row + 1], maps


def segment_large(
    model: nn.Module,
    plane: InputPlane,
    source: Picture,
    config: ObjectiveConfig,
    *,
    window: int,
    overlap: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Scratch | None = None,
    notes: tuple[str, ...] = (),
) -> SegmentationResult:
    """Cells of an image of any size (both sides at least `window`), with progress; labels and maps in scratch files.

    The cells are those of whole-image decoding up to their numbers (see `blocks`). `source` may have another scale
    than the plane; labels come back at the plane's size.
    """
    scratch = scratch or Scratch()
    objective = build_objective(config)
    if source.constant:
        notes = (*notes, "the image is constant: no cells")
        empty = scratch.array("final", plane.size, np.uint16, "writing")
        return SegmentationResult(labels=empty, maps=None, objective=objective, plane=plane, notes=notes)
    channels = len(objective.channels)
    rows = predict_large(model, source, channels, window, overlap, batch_size, device, dtype, scratch)
    total, maps = len(starts(source.size[0], window, overlap)), np.zeros(0, np.float32)
    for _, partial in log.progress(rows, "network", total - scratch.done("network"), "rows of windows"):
        maps = partial
    seen: Any = maps if source.size == plane.size else ScaledMaps(maps, plane.size)
    labels = _decoded(seen, maps, config, plane, scratch)
    return SegmentationResult(labels=labels, maps=seen, objective=objective, plane=plane, notes=notes)


def _decoded(seen: Any, maps: Float32, config: ObjectiveConfig, plane: InputPlane, scratch: Scratch) -> NDArray[Any]:
    """Labels (H, W) in scratch, decoded block by block; blocks that an earlier run finished are not decoded again."""
    labels = scratch.array("labels", plane.size, np.uint32, "decoding")
    first, count = scratch.done("decoding"), scratch.done("cells")
    if scratch.resumed:  # cells of the block that was being decoded are found again
        step = band_rows(labels.shape, labels.dtype.itemsize)
        for top in range(0, len(labels), step):
            part = labels[top : top + step]
            part[part > count] = 0
            release(labels)
    steps = decode_blocks(seen, config, labels, BLOCK, first=first, count=count)
    total = len(blocks(plane.size, BLOCK))
    for done, found in enumerate(log.progress(steps, "decoding", total - first, "blocks"), start=first + 1):
        count = found
        scratch.commit(labels, decoding=done, cells=count)
        release(maps)
        release(labels)
    return _cleaned(labels, plane.gray, count, scratch)


def _cleaned(labels: NDArray[Any], gray: NDArray[Any], count: int, scratch: Scratch) -> NDArray[Any]:
    """Labels without cells on NaN pixels, as uint16 if they fit."""
    small = count <= MAX_UINT16
    target = scratch.array("final", labels.shape, np.uint16, "writing") if small else labels
    step = band_rows(labels.shape, labels.dtype.itemsize)
    for top in range(0, len(labels), step):
        rows = slice(top, top + step)
        part = labels[rows]
        if gray.dtype.kind == "f":
            part = np.where(np.isfinite(gray[rows]), part, 0)
        target[rows] = part
        for array in (labels, target, gray):
            release(array)
    return target
