"""Decoding of maps too large for one piece: overlapping blocks whose cells are those of the whole image.

Each block is decoded with a halo around its core. A cell belongs to the block whose core contains its first pixel in
reading order, and that block decodes it whole: where a cell of the core reaches the halo's rim, the halo is doubled
and the block decoded again. So no cell is cut, found twice or lost, and nothing needs stitching.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core import log
from dinocell.core.arrays import Float32
from dinocell.images.mapped import copy_by_bands
from dinocell.objectives import Decoded, Frame, Objective, ObjectiveConfig, build_objective

BLOCK = 2048
HALO = 256
MAX_HALO = 4096
# Decoding looks this far beyond a pixel at most (growing seeds, filling holes, gradients).
MARGIN = 8


@dataclasses.dataclass(frozen=True)
class Region:
    """Rows and columns y0 … y1, x0 … x1 (ends exclusive) of an image."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def grown(self, by: int, size: tuple[int, int]) -> Region:
        """Add a border of `by` pixels, cut to the image."""
        return Region(
            max(0, self.y0 - by), min(size[0], self.y1 + by), max(0, self.x0 - by), min(size[1], self.x1 + by)
        )


def split_blocks(size: tuple[int, int], block: int = BLOCK) -> list[Region]:
    """Tile the image with cores, row by row."""
    return [
        Region(y, min(y + block, size[0]), x, min(x + block, size[1]))
        for y in range(0, size[0], block)
        for x in range(0, size[1], block)
    ]


def decode_blocks(
    maps: Any,
    config: ObjectiveConfig,
    labels: NDArray[Any],
    block: int = BLOCK,
    halo: int = HALO,
    max_halo: int = MAX_HALO,
    first: int = 0,
    count: int = 0,
) -> Iterator[int]:
    """Decode maps (K, H, W) into `labels` (H, W), block by block.

    Args:
        maps: raw network output, in memory, memory-mapped, or `regions.ScaledMaps`.
        config: the objective and its thresholds, which are those of the whole image.
        labels: integers, all 0 at the start; filled with 1…n.
        block: side of a core, px.
        halo: first width of the border around it, px; about the largest cell.
        max_halo: a cell that needs more is taken as the largest halo shows it, with a warning.
        first: blocks that are decoded already.
        count: cells in them.

    Yields:
        The number of cells so far, after each block.
    """
    size = (labels.shape[0], labels.shape[1])
    objective = build_objective(config)
    for core in split_blocks(size, block)[first:]:
        for y, x, mask in _decode_core(maps, objective, core, size, halo, max_halo):
            window = labels[y : y + mask.shape[0], x : x + mask.shape[1]]
            free = mask & (window == 0)
            if free.any():
                count += 1
                window[free] = count
        yield count


def _decode_core(
    maps: Any, objective: Objective, core: Region, size: tuple[int, int], halo: int, max_halo: int
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yield (top, left, mask) of each cell whose first pixel is in the core."""
    while True:
        region = core.grown(halo, size)
        part = _read(maps, region)
        decoded = _decode(part, objective, region, size)
        labels, boxes = decoded.labels, ndimage.find_objects(decoded.labels)
        if not _cut(labels, boxes, part, objective, core, region, size):
            break
        if halo >= max_halo:
            log.warning(
                f"a cell at y {core.y0}:{core.y1} x {core.x0}:{core.x1} is larger than {max_halo} px; it may be cut"
            )
            break
        halo *= 2
    decoded.announce()
    for number, box in enumerate(boxes, start=1):
        mask = labels[box] == number
        top, left = region.y0 + box[0].start, region.x0 + box[1].start
        first = left + int(mask[0].argmax())
        if core.y0 <= top < core.y1 and core.x0 <= first < core.x1:
            yield top, left, mask


def _read(maps: Any, region: Region) -> Float32:
    """Copy the maps (K, h, w) of a region into separate memory."""
    source = maps[(slice(None), *region.slices)]
    if not isinstance(source, np.memmap):
        return np.ascontiguousarray(source)
    part: Float32 = np.empty(source.shape, np.float32)
    copy_by_bands(part, source)
    return part


def _decode(part: Float32, objective: Objective, region: Region, size: tuple[int, int]) -> Decoded:
    """Decode a region as it is in the whole image."""
    return objective.decode_with_notes(part, Frame(y=region.y0, x=region.x0, height=size[0], width=size[1]))


def _cut(
    labels: NDArray[np.int32],
    boxes: list[Any],
    part: Float32,
    objective: Objective,
    core: Region,
    region: Region,
    size: tuple[int, int],
) -> bool:
    """Check for something in the core that continues beyond the halo, so that its extent cannot be seen from inside."""
    inner = _inner(region, size)
    inside = (slice(core.y0 - region.y0, core.y1 - region.y0), slice(core.x0 - region.x0, core.x1 - region.x0))
    if region == Region(0, size[0], 0, size[1]):
        return False
    if _cells_reach(labels, boxes, inside, inner):
        return True
    # A cell cut by the rim may have been dropped for its shape: its pixels are then cells' that have no label.
    if not _loose_reach(part, labels, objective, inside, inner):
        return False
    if not objective.cell_check:
        return True
    # Most often these pixels are not a cut cell but several whole ones, dropped: look at what was dropped.
    keeping = dataclasses.replace(objective.without_check(), min_size=0, max_size_fraction=1.0)
    every = _decode(part, build_objective(keeping), region, size).labels
    return _cells_reach(every, ndimage.find_objects(every), inside, inner) or _loose_reach(
        part, every, objective, inside, inner
    )


def _cells_reach(
    labels: NDArray[np.int32], boxes: list[Any], inside: tuple[slice, slice], inner: tuple[slice, slice]
) -> bool:
    """Check for a cell with pixels in the core (`inside`) that leaves the region's inner part."""
    return any(number and not _within(boxes[number - 1], inner) for number in np.unique(labels[inside]))


def _loose_reach(
    part: Float32,
    labels: NDArray[np.int32],
    objective: Objective,
    inside: tuple[slice, slice],
    inner: tuple[slice, slice],
) -> bool:
    """Check for connected cell pixels without a label that lead from the core out of the region's inner part."""
    loose = objective.foreground(part) & (labels == 0)
    pieces, count = ndimage.label(loose, structure=np.ones((3, 3), bool))
    within, beyond = np.zeros(count + 1, bool), np.zeros(count + 1, bool)
    within[pieces[inside]] = True
    pieces[inner] = 0
    beyond[pieces] = True
    return bool((within & beyond)[1:].any())


def _inner(region: Region, size: tuple[int, int]) -> tuple[slice, slice]:
    """Cut off what is too near to the region's rim, in its own coordinates; the image's rim counts as no rim."""
    top = MARGIN if region.y0 > 0 else 0
    left = MARGIN if region.x0 > 0 else 0
    bottom = region.y1 - region.y0 - (MARGIN if region.y1 < size[0] else 0)
    right = region.x1 - region.x0 - (MARGIN if region.x1 < size[1] else 0)
    return slice(top, bottom), slice(left, right)


def _within(box: Any, inner: tuple[slice, slice]) -> bool:
    return all(part.start >= whole.start and part.stop <= whole.stop for part, whole in zip(box, inner, strict=True))
