"""Images of any size in bounded memory: streamed windows, maps in a scratch file, decoding in blocks.

What is held at a time is some windows and one block. The image, the maps and the labels lie in scratch files: 4 bytes
a pixel for every map and for the labels. The work can be interrupted at any time and continued (see `resume`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell.images.mapped import copy_by_bands, release
from dinocell.predict.large.regions import Picture
from dinocell.predict.large.work_folder import Scratch
from dinocell.predict.runner import evaluating, run_batch
from dinocell.predict.windows import covering_windows, starts, taper

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
        for row, tiles in groupby(covering_windows(source.size, window, overlap), key=lambda at: at.row):
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
