"""Connected regions of equal label, from runs along rows: holes of cells and their fragments, in linear time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dinocell.core.arrays import Labels
from dinocell.core.jit import compiled
from dinocell.labels.cells import BLANK, is_blank


def fill_holes(labels: Labels) -> npt.NDArray[np.int64]:
    """Fills, in place, every background region that a single cell encloses.

    A hole is a 4-connected background region that neither touches the image border nor a second cell: a cell
    inside another one stays, where Cellpose's per-mask filling overwrites it.

    Args:
        labels: (H, W) int32, C-contiguous, 0 = background.

    Returns:
        (max label + 1,) pixels that each label gained.
    """
    gained = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    if labels.size:
        starts, rows, parents = _regions(labels)
        _fill(labels, starts, rows, parents, gained)
    return gained


def split_fragments(labels: Labels) -> Labels:
    """Numbers the 8-connected regions of equal label 1…n; `labels` itself where every cell is one region already.

    Args:
        labels: (H, W) int32, C-contiguous, 0 = background.
    """
    if labels.size == 0:
        return labels
    starts, _, parents = _regions(labels)
    roots = np.flatnonzero(parents == np.arange(len(parents)))
    numbers = labels.ravel()[starts[roots]]
    roots, numbers = roots[numbers > 0], numbers[numbers > 0]
    if len(np.unique(numbers)) == len(numbers):
        return labels
    names = np.zeros(len(parents), np.int32)
    names[roots] = np.arange(1, len(roots) + 1, dtype=np.int32)
    return np.repeat(names[parents], np.diff(starts, append=labels.size)).reshape(labels.shape)


@compiled(fast=True)
def _changes(pixels, following):  # type: ignore[no-untyped-def]
    """Count the pixels that differ from the one that follows."""
    count = 0
    for i in range(pixels.size):
        count += pixels[i] != following[i]
    return count


@compiled(fast=True)
def _regions(labels):  # type: ignore[no-untyped-def]
    """Runs of equal label: start of each in the flat image, first run of each row, and root run of its region.

    Cells are 8-connected, the background 4-connected.
    """
    height, width = labels.shape
    flat = labels.ravel()
    count = height
    for y in range(height):
        count += _changes(flat[y * width : (y + 1) * width - 1], flat[y * width + 1 : (y + 1) * width])
    starts = np.empty(count, np.int32)
    rows = np.empty(height + 1, np.int32)
    run = 0
    for y in range(height):
        rows[y] = run
        x = 0
        before = np.int32(-1)
        while x < width:
            here = y * width + x
            if before == 0 and x + BLANK <= width and is_blank(flat[here : here + BLANK]):
                x += BLANK
                continue
            if labels[y, x] != before:
                before = labels[y, x]
                starts[run] = here
                run += 1
            x += 1
    rows[height] = run
    parents = np.arange(count).astype(np.int32)
    for y in range(1, height):
        _join_rows(labels, starts, rows, y, parents)
    for run in range(count):
        parents[run] = parents[parents[run]]
    return starts, rows, parents


@compiled(fast=True)
def _root(parents, i):  # type: ignore[no-untyped-def]
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@compiled(fast=True)
def _stop(starts, rows, y, run, width):  # type: ignore[no-untyped-def]
    """Column after the run's last pixel."""
    return starts[run + 1] - y * width if run + 1 < rows[y + 1] else width


@compiled(fast=True)
def _join_rows(labels, starts, rows, y, parents):  # type: ignore[no-untyped-def]
    """Joins the runs of row y to those of the row above; the root of a region is its first run."""
    width = labels.shape[1]
    above = rows[y - 1]
    for run in range(rows[y], rows[y + 1]):
        start = starts[run] - y * width
        stop = _stop(starts, rows, y, run, width)
        label = labels[y, start]
        reach = 1 if label > 0 else 0
        while above + 1 < rows[y] and _stop(starts, rows, y - 1, above, width) + reach <= start:
            above += 1
        other = above
        while other < rows[y] and starts[other] - (y - 1) * width < stop + reach:
            column = starts[other] - (y - 1) * width
            if labels[y - 1, column] == label and _stop(starts, rows, y - 1, other, width) + reach > start:
                a, b = _root(parents, other), _root(parents, run)
                parents[max(a, b)] = min(a, b)
            other += 1


@compiled(fast=True)
def _merge_owner(owner, label):  # type: ignore[no-untyped-def]
    """Owner of a background region that also touches `label`: 0 none yet, −1 no single cell."""
    if label == 0 or owner == label:
        return owner
    return label if owner == 0 else np.int32(-1)


@compiled(fast=True)
def _fill(labels, starts, rows, parents, gained):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    owners = np.zeros(len(starts), np.int32)
    for y in range(height):
        for run in range(rows[y], rows[y + 1]):
            start, stop = starts[run] - y * width, _stop(starts, rows, y, run, width)
            if labels[y, start] != 0:
                continue
            root = parents[run]
            if owners[root] < 0:
                continue
            if y == 0 or y == height - 1 or start == 0 or stop == width:
                owners[root] = -1
                continue
            owner = _merge_owner(_merge_owner(owners[root], labels[y, start - 1]), labels[y, stop])
            for x in range(start, stop):
                owner = _merge_owner(_merge_owner(owner, labels[y - 1, x]), labels[y + 1, x])
            owners[root] = owner
    for y in range(height):
        for run in range(rows[y], rows[y + 1]):
            owner = owners[parents[run]]
            if owner > 0:
                start, stop = starts[run] - y * width, _stop(starts, rows, y, run, width)
                labels[y, start:stop] = owner
                gained[owner] += stop - start
