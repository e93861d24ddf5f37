"""Label images of any dtype and numbering, and the bounding boxes of their cells, in time linear in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from dinocell.core.arrays import Labels
from dinocell.core.jit import compiled

# Pixels that are looked at together, to pass over empty ground in strides.
BLANK = 32


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of one label image.

    Attributes:
        labels: (H, W) int32, C-contiguous, 0 = background; the caller's array itself when it already is that.
        index: (max label + 1,) int32, label → row of the arrays below, -1 for numbers that no pixel carries.
        numbers: (n,) int32, the label of each cell, ascending.
        boxes: (n, 4) int32, y0, x0, y1, x1 of each cell, ends exclusive; the one order of corners in this library.
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
        return boxes[:, 2:] - boxes[:, :2]

    def without(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """The other cells, numbered 1…n; **overwrites** `labels`. Nothing is touched where nothing changes."""
        if not chosen.any() and (len(self.numbers) == 0 or self.numbers[-1] == len(self.numbers)):
            return self
        kept = np.flatnonzero(~chosen)
        keep = np.zeros(len(self.index), bool)
        keep[self.numbers[kept]] = True
        _translate(self.labels, renumber_table(keep)[0])
        return Cells(
            labels=self.labels,
            index=np.arange(-1, len(kept), dtype=np.int32),
            numbers=np.arange(1, len(kept) + 1, dtype=np.int32),
            boxes=self.boxes[kept],
            areas=self.areas[kept],
        )


def checked_labels(labels: npt.ArrayLike) -> Labels:
    """`labels` as C-contiguous int32 (H, W) whose largest number is small enough for a look-up table.

    Numbers are kept (and nothing is copied) when the array already is such; otherwise cells are renumbered 1…n in
    ascending order of their number. Accepts bool, any signed or unsigned integer, and floats that are integers.

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
            raise ValueError("labels must be integers, got fractions or NaN in a float array")
    elif array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got dtype {array.dtype}")
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}; set ignored pixels to 0 and pass a weight")
    if array.max() <= max(65_535, array.size // 2):
        return np.ascontiguousarray(array, dtype=np.int32)
    return renumber(array)[0]


def renumber(labels: NDArray[Any]) -> tuple[Labels, int]:
    """Renumber the labels present to 1…n without gaps, in their order; 0 stays background.

    Args:
        labels: (H, W) integers, or floats that are integers.

    Returns:
        The labels, int32, and their count n.

    Raises:
        ValueError: a negative label.
    """
    array = np.asarray(labels)
    if array.size and array.min() < 0:
        raise ValueError(f"labels contain {array.min()}; they are 0 for background and positive for cells")
    top = int(array.max(initial=0))
    if top <= 4 * array.size + 255:
        table, count = renumber_table(np.bincount(array.ravel().astype(np.intp), minlength=top + 1) > 0)
        return table[array.astype(np.intp)], count
    # Numbers too wild for a table: by runs of equal pixels, so that sorting costs runs and not pixels.
    flat = np.ascontiguousarray(array).ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    numbers, inverse = np.unique(flat[starts], return_inverse=True)
    first = 0 if numbers[0] == 0 else 1
    lengths = np.diff(starts, append=flat.size)
    ranks = np.repeat((inverse + first).astype(np.int32), lengths).reshape(array.shape)
    return ranks, len(numbers) - 1 + first


def renumber_table(keep: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], int]:
    """Look-up table from a label to its new number: 1…n for those kept, 0 for the others and for background.

    Args:
        keep: (largest label + 1,) bool; the entry of background is ignored.

    Returns:
        The table, int32, and n.
    """
    kept = np.array(keep, bool)
    kept[:1] = False
    count = int(kept.sum())
    table = np.zeros(len(kept), np.int32)
    table[kept] = np.arange(1, count + 1, dtype=np.int32)
    return table, count


def keep_cells(labels: Labels, keep: npt.ArrayLike) -> Labels:
    """Labels 1…n → 1…m without gaps, dropping label k where keep[k − 1] is False."""
    return renumber_table(np.concatenate([[False], np.asarray(keep, bool)]))[0][labels]


def cell_boxes(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Bounding boxes (largest label, 4) int64 of labels 1…: y0, x0, y1, x1, ends exclusive; zeros where a number is
    absent.
    """
    cells = find_cells(labels)
    boxes = np.zeros((len(cells.index) - 1, 4), np.int64)
    boxes[cells.numbers - 1] = cells.boxes
    return boxes


def equivalent_diameters(areas: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Diameters of the circles of equal area, in px, of areas in px²."""
    return 2.0 * np.sqrt(np.asarray(areas, np.float64) / np.pi)


def find_cells(labels: npt.ArrayLike) -> Cells:
    """Bounding box and area of every cell of a label image (H, W) of any integer dtype and numbering."""
    whole = checked_labels(labels)
    return measure_cells(whole, int(whole.max(initial=0)))


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
    """True if all pixels are background; a loop without a branch, so that it vectorizes."""
    bits = np.int32(0)
    for i in range(pixels.size):
        bits |= pixels[i]
    return bits == 0


@compiled(fast=True)
def _measure(labels, boxes, areas):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    flat = labels.ravel()
    boxes[:, 0] = height
    boxes[:, 1] = width
    boxes[:, 2] = 0
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
                box[1] = min(box[1], start)
                box[2] = max(box[2], y + 1)
                box[3] = max(box[3], x)


MAX_UINT16 = 65_535


def compact_dtype(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as uint16, or uint32 when they do not fit."""
    return labels.astype(np.uint16 if labels.max(initial=0) <= MAX_UINT16 else np.uint32)
