"""Holes of cells, filled in one pass over the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dinocell.objectives.jit import kernel


def fill_holes(labels: npt.NDArray[np.int32]) -> None:
    """Fills, in place, every background region that a single cell encloses.

    A hole is a 4-connected background region that neither touches the image border nor a second cell: a cell lying
    inside another one stays, where Cellpose's per-mask filling overwrites it.

    Args:
        labels: (H, W) int32, C-contiguous, 0 = background.
    """
    if labels.size:
        _fill(labels)


@kernel
def _root(parents, i):  # type: ignore[no-untyped-def]
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@kernel
def _count_runs(labels):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    runs = 0
    for y in range(height):
        inside = False
        for x in range(width):
            background = labels[y, x] == 0
            if background and not inside:
                runs += 1
            inside = background
    return runs


@kernel
def _list_runs(labels, starts, stops, rows):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    run = 0
    for y in range(height):
        rows[y] = run
        x = 0
        while x < width:
            if labels[y, x] != 0:
                x += 1
                continue
            starts[run] = x
            while x < width and labels[y, x] == 0:
                x += 1
            stops[run] = x
            run += 1
    rows[height] = run


@kernel
def _join_runs(starts, stops, rows, parents):  # type: ignore[no-untyped-def]
    for y in range(1, len(rows) - 1):
        above = rows[y - 1]
        for run in range(rows[y], rows[y + 1]):
            while above < rows[y] and stops[above] <= starts[run]:
                above += 1
            other = above
            while other < rows[y] and starts[other] < stops[run]:
                a, b = _root(parents, other), _root(parents, run)
                parents[max(a, b)] = min(a, b)
                other += 1


@kernel
def _merge_owner(owner, label):  # type: ignore[no-untyped-def]
    """Owner of a region that also touches `label`: 0 none yet, −1 no single cell."""
    if label == 0 or owner == label:
        return owner
    return label if owner == 0 else np.int32(-1)


@kernel
def _fill(labels):  # type: ignore[no-untyped-def]
    height, width = labels.shape
    count = _count_runs(labels)
    starts = np.empty(count, np.int32)
    stops = np.empty(count, np.int32)
    rows = np.empty(height + 1, np.int64)
    _list_runs(labels, starts, stops, rows)
    parents = np.arange(count).astype(np.int32)
    _join_runs(starts, stops, rows, parents)
    owners = np.zeros(count, np.int32)
    for y in range(height):
        for run in range(rows[y], rows[y + 1]):
            root = _root(parents, run)
            start, stop = starts[run], stops[run]
            if y == 0 or y == height - 1 or start == 0 or stop == width:
                owners[root] = -1
                continue
            owner = _merge_owner(_merge_owner(owners[root], labels[y, start - 1]), labels[y, stop])
            for x in range(start, stop):
                owner = _merge_owner(_merge_owner(owner, labels[y - 1, x]), labels[y + 1, x])
            owners[root] = owner
    for y in range(height):
        for run in range(rows[y], rows[y + 1]):
            owner = owners[_root(parents, run)]
            if owner > 0:
                for x in range(starts[run], stops[run]):
                    labels[y, x] = owner
