"""Label images of any dtype and numbering, and the bounding boxes of their cells, in time linear in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from dinocell.core.jit import compiled

Labels = npt.NDArray[np.int32]

# Pixels that are looked at together, to pass over empty ground in strides.
BLANK = 32


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of one label image.

    Attributes:
        labels: (H, W) int32, C-contiguous, 0 = background; the caller's array itself when it already is that.
        index: (max label + 1,) int32, label → row of the arrays below, -1 for numbers that no pixel carries.
        numbers: (n,) int32, the label of each cell, ascending.
        boxes: (n, 4) int32, y0, y1, x0, x1 of each cell, ends exclusive.
        areas: (n,) int64 pixels.
    """

    labels: Labels
    index: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    areas: npt.NDArray[np.int64]

    @property
    def sides(self) -> npt.NDArray[np.int64]:
        """(n, 2) int64 height and width of each bounding box in pixels."""
        boxes = self.boxes.astype(np.int64)
        return np.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], axis=1)

    def without(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """The other cells, numbered 1…n; **overwrites** `labels`. Nothing is touched where nothing changes."""
        if not chosen.any() and (len(self.numbers) == 0 or self.numbers[-1] == len(self.numbers)):
            return self
        kept = np.flatnonzero(~chosen)
        table = np.zeros(len(self.index), np.int32)
        table[self.numbers[kept]] = np.arange(1, len(kept) + 1, dtype=np.int32)
        _translate(self.labels, table)
        return Cells(
            labels=self.labels,
            index=np.arange(-1, len(kept), dtype=np.int32),
            numbers=np.arange(1, len(kept) + 1, dtype=np.int32),
            boxes=self.boxes[kept],
            areas=self.areas[kept],
        )


def compact_labels(labels: npt.ArrayLike) -> Labels:
    """Returns `labels` as C-contiguous int32 (H, W) whose largest number is small enough for a look-up table.

    Numbers are kept (and nothing is copied) when the array already is such; otherwise cells are renumbered 1…n in
    ascending order of their number. Accepts bool, any signed or unsigned integer, and floats that hold integers.

    Raises:
        ValueError: not two-dimensional, negative numbers, or floats that are not integers.
    """
    array = np.asarray(labels)
    if array.ndim != 2:
        raise ValueError(f"labels must be (H, W), got shape {array.shape}")
    if array.dtype == bool:
        return array.astype(np.int32)
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.rint(array)):
            raise ValueError("labels must hold integers, got fractions or NaN in a float array")
    elif array.dtype.kind not in "iu":
        raise ValueError(f"labels must hold integers, got dtype {array.dtype}")
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}; set ignored pixels to 0 and pass a weight")
    if array.max() <= max(65_535, array.size // 2):
        return np.ascontiguousarray(array, dtype=np.int32)
    return _renumber(array)


def _renumber(array: npt.NDArray[np.generic]) -> Labels:
    """Renumbers by runs of equal pixels, so that sorting costs runs and not pixels."""
    flat = np.ascontiguousarray(array).ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    numbers, inverse = np.unique(flat[starts], return_inverse=True)
    first = 0 if numbers[0] == 0 else 1
    lengths = np.diff(starts, append=flat.size)
    return np.repeat((inverse + first).astype(np.int32), lengths).reshape(array.shape)


def find_cells(labels: npt.ArrayLike) -> Cells:
    """Bounding box and area of every cell of a label image (H, W) of any integer dtype and numbering."""
    compact = compact_labels(labels)
    return measure_cells(compact, int(compact.max(initial=0)))


def measure_cells(labels: Labels, largest: int) -> Cells:
    """As `find_cells`, for C-contiguous int32 labels from 0 to `largest`."""
    areas = np.zeros(largest + 1, np.int64)
    boxes = np.empty((largest + 1, 4), np.int32)
    _measure(labels, boxes, areas)
    areas[0] = 0
    numbers = np.flatnonzero(areas).astype(np.int32)
    index = np.full(largest + 1, -1, np.int32)
    index[numbers] = np.arange(len(numbers), dtype=np.int32)
    return Cells(labels=labels, index=index, numbers=numbers, boxes=boxes[numbers], areas=areas[numbers])


@compiled(fast=True)
def _translate(labels, table):  # type: ignore[no-untyped-def]
    flat = labels.ravel()
    for i in range(flat.size):
        if flat[i] > 0:
            flat[i] = table[flat[i]]


@compiled(fast=True)
def is_blank(pixels):  # type: ignore[no-untyped-def]
    """Whether all pixels are background; a loop without a branch, so that it vectorises."""
    bits = np.int32(0)
    for i in range(pixels.size):
        bits |= pixels[i]
    return bits == 0


@compiled(fast=True)
def _measure(labels, boxes, areas):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    flat = labels.ravel()
    boxes[:, 0] = height
    boxes[:, 1] = 0
    boxes[:, 2] = width
    boxes[:, 3] = 0
    for y in range(height):
        x = 0
        while x < width:
            here = y * width + x
            if x + BLANK <= width and is_blank(flat[here : here + BLANK]):
                x += BLANK
                continue
            label = labels[y, x]
            start = x
            while x < width and labels[y, x] == label:
                x += 1
            if label > 0:
                areas[label] += x - start
                box = boxes[label]
                box[0] = min(box[0], y)
                box[1] = max(box[1], y + 1)
                box[2] = min(box[2], start)
                box[3] = max(box[3], x)


MAX_UINT16 = 65_535


def compact_dtype(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as uint16, or uint32 when they do not fit."""
    return labels.astype(np.uint16 if labels.max(initial=0) <= MAX_UINT16 else np.uint32)
