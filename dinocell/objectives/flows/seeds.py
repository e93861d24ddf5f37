"""Labels from end points: these are gathered into seeds, the seeds grow, and pixels take the label of their seed.

The steps are Cellpose's (Stringer et al. 2021): histogram of end points, seeds at its 5×5 maxima, growth.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled
from dinocell.labels.cells import BLANK

SEED_COUNT = 10
GROW_COUNT = 2
SEED_RADIUS = 2
GROW_RADIUS = 5


def label_sinks(ends: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Replace the end points of `end_points` by labels 1…n, 0 = none, in place.

    Larger seeds win where the growth of two overlaps.

    Returns:
        n, and the number of pixels that have an end point.
    """
    counts = np.zeros(ends.shape, np.int32)
    candidates, inside = _count(ends, counts)
    seeds = _find_seeds(counts, np.sort(candidates))
    order = np.argsort(counts.ravel()[seeds], kind="stable")
    owners = np.zeros(ends.shape, np.int32)
    _grow(counts, seeds[order], owners)
    _assign(ends, owners)
    return len(seeds), int(inside)


@compiled(fast=True)
def _is_empty(ends):  # type: ignore[no-untyped-def]
    """Check that no pixel has an end point; a loop without a branch, so that it vectorises."""
    bits = np.int32(-1)
    for i in range(ends.size):
        bits &= ends[i]
    return bits == -1


@compiled(fast=True)
def _count(ends, counts):  # type: ignore[no-untyped-def]
    """Count end points in each pixel; return the pixels with more than SEED_COUNT, and the number of end points."""
    flat = counts.ravel()
    candidates = np.empty(max(counts.size // (SEED_COUNT + 1), 1), np.int64)
    found = 0
    inside = 0
    where = ends.ravel()
    for first in range(0, where.size, BLANK):
        part = where[first : first + BLANK]
        if _is_empty(part):
            continue
        for i in range(part.size):
            end = part[i]
            if end >= 0:
                flat[end] += 1
                inside += 1
                if flat[end] == SEED_COUNT + 1:
                    candidates[found] = end
                    found += 1
    return candidates[:found].copy(), inside


@compiled(fast=True)
def _is_seed(counts, y, x):  # type: ignore[no-untyped-def]
    height, width = counts.shape
    value = counts[y, x]
    for v in range(max(y - SEED_RADIUS, 0), min(y + SEED_RADIUS + 1, height)):
        for u in range(max(x - SEED_RADIUS, 0), min(x + SEED_RADIUS + 1, width)):
            if counts[v, u] > value:
                return False
    return True


@compiled(fast=True)
def _find_seeds(counts, candidates):  # type: ignore[no-untyped-def]
    """Choose the candidates (flat indices) that are the maximum of their surroundings, in the same order."""
    width = counts.shape[1]
    found = 0
    seeds = np.empty_like(candidates)
    for place in candidates:
        if _is_seed(counts, place // width, place % width):
            seeds[found] = place
            found += 1
    return seeds[:found].copy()


@compiled(fast=True)
def _grow(counts, seeds, owners):  # type: ignore[no-untyped-def]
    """Grow each seed GROW_RADIUS times by 3×3 where more than GROW_COUNT pixels end; later seeds overwrite."""
    height, width = counts.shape
    side = 2 * GROW_RADIUS + 3
    reached = np.zeros((side, side), np.uint8)
    for k in range(len(seeds)):
        seed_y = seeds[k] // width
        seed_x = seeds[k] % width
        reached[:] = 0
        reached[GROW_RADIUS + 1, GROW_RADIUS + 1] = 1
        for ring in range(1, GROW_RADIUS + 1):
            for v in range(max(-ring, -seed_y), min(ring, height - 1 - seed_y) + 1):
                for u in range(max(-ring, -seed_x), min(ring, width - 1 - seed_x) + 1):
                    i, j = v + GROW_RADIUS + 1, u + GROW_RADIUS + 1
                    if reached[i, j] == 0 and counts[seed_y + v, seed_x + u] > GROW_COUNT:
                        for a in range(i - 1, i + 2):
                            for b in range(j - 1, j + 2):
                                if 0 < reached[a, b] <= ring:
                                    reached[i, j] = ring + 1
        for v in range(-GROW_RADIUS, GROW_RADIUS + 1):
            for u in range(-GROW_RADIUS, GROW_RADIUS + 1):
                if reached[v + GROW_RADIUS + 1, u + GROW_RADIUS + 1] > 0:
                    owners[seed_y + v, seed_x + u] = k + 1


@compiled(fast=True)
def _assign(ends, owners):  # type: ignore[no-untyped-def]
    flat = owners.ravel()
    labels = ends.ravel()
    for first in range(0, labels.size, BLANK):
        part = labels[first : first + BLANK]
        if _is_empty(part):
            part[:] = 0
            continue
        for i in range(part.size):
            part[i] = flat[part[i]] if part[i] >= 0 else 0
