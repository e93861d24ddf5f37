"""From flows to labels: follow every pixel to its sink, gather sinks into seeds, label pixels by sink.

The steps are Cellpose's (Stringer et al. 2021): Euler integration, histogram of end points, seeds at its 5×5 maxima,
growth. They differ in three ways. A pixel stops as soon as it has arrived, and one that has not may walk on far
beyond Cellpose's 200 steps, so long cells come back whole and short ones cost little. Flows are sampled at the true
pixel positions (Cellpose's sampling is off by up to half a pixel towards the image borders). End points are rounded
to the nearest pixel instead of cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.objectives.jit import kernel

# Steps of one leg; only a pixel that hardly moves takes so many.
MAX_STEPS = 200
# A leg ends, rounded to the nearest pixel, this far (px, either axis) from its start.
LEG = 6.0
# A pixel has arrived when it swings across a ridge, back to within SWING px of where it was two steps ago, or moves
# less than STILL px in two steps.
SWING = 0.05
STILL = 0.01
# Flows beyond this (px a step) are garbage, not motion.
FASTEST = np.float32(1e4)
# Set in an end point that is a sink, unset in one from which the pixel there knows the way on.
SINK = np.int32(1 << 30)
SEED_COUNT = 10
GROW_COUNT = 2
SEED_RADIUS = 2
GROW_RADIUS = 5


def rows_in_threads(threads: int, height: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls `function(first_row, last_row, *arguments)` on bands of rows, one call after another or in threads."""
    if threads <= 1:
        function(0, height, *arguments)
        return
    cuts = np.linspace(0, height, threads * 4 + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(function, a, b, *arguments) for a, b in itertools.pairwise(cuts)]
        for job in jobs:
            job.result()


def end_points(
    flows: npt.NDArray[np.float32],
    probability: npt.NDArray[np.float32],
    threshold: float,
    max_steps: int = MAX_STEPS,
    threads: int = 1,
) -> npt.NDArray[np.int32]:
    """Flat index of the pixel where each pixel with probability > threshold ends; −1 elsewhere.

    Args:
        flows: (2, H, W) float32, pixels a step.
        probability: (H, W) float32.
        threshold: pixels at or below it neither move nor attract.
        max_steps: Euler steps of one leg before its pixel counts as arrived.
        threads: threads that share the rows.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: an image of 2³⁰ pixels or more; decode such an image in blocks.
    """
    height, width = probability.shape
    if probability.size >= SINK:
        raise ValueError(f"an image of {height} × {width} pixels is too large to decode whole; decode it in blocks")
    pairs = np.zeros((height + 1, width + 1, 2), np.float32)
    _interleave(flows, probability, np.float32(threshold), pairs)
    ends = np.empty((height, width), np.int32)
    rows_in_threads(threads, height, _follow, pairs, probability, np.float32(threshold), max_steps, ends)
    _join(ends.ravel())
    return ends


def label_sinks(ends: npt.NDArray[np.int32]) -> int:
    """Replaces the end points of `end_points` by labels 1…n, 0 = none, in place; returns n.

    Larger seeds win where the growth of two overlaps.
    """
    counts = np.zeros(ends.shape, np.int32)
    _count(ends, counts)
    seeds = _find_seeds(counts)
    order = np.argsort(counts.ravel()[seeds], kind="stable")
    owners = np.zeros(ends.shape, np.int32)
    _grow(counts, seeds[order], owners)
    _assign(ends, owners)
    return len(seeds)


@kernel
def _interleave(flows, probability, threshold, pairs):  # type: ignore[no-untyped-def]
    height, width = probability.shape
    for y in range(height):
        for x in range(width):
            if probability[y, x] > threshold:
                dy, dx = flows[0, y, x], flows[1, y, x]
                # False for NaN too: a pixel without a usable flow stays where it is.
                if abs(dy) < FASTEST and abs(dx) < FASTEST:
                    pairs[y, x, 0] = dy
                    pairs[y, x, 1] = dx


@kernel
def _step(pairs, y, x, last_y, last_x):  # type: ignore[no-untyped-def]
    """Position after one Euler step from (y, x), with bilinear sampling, clamped to the image."""
    row = int(y)
    column = int(x)
    fraction_y = y - np.float32(row)
    fraction_x = x - np.float32(column)
    one = np.float32(1)
    a = (one - fraction_y) * (one - fraction_x)
    b = (one - fraction_y) * fraction_x
    c = fraction_y * (one - fraction_x)
    d = fraction_y * fraction_x
    top = pairs[row]
    bottom = pairs[row + 1]
    dy = a * top[column, 0] + b * top[column + 1, 0] + c * bottom[column, 0] + d * bottom[column + 1, 0]
    dx = a * top[column, 1] + b * top[column + 1, 1] + c * bottom[column, 1] + d * bottom[column + 1, 1]
    zero = np.float32(0)
    return min(max(y + dy, zero), last_y), min(max(x + dx, zero), last_x)


@kernel
def _walk(pairs, y, x, last_y, last_x, max_steps):  # type: ignore[no-untyped-def]
    """One leg of one pixel: where it ends, and whether that is a sink (the middle of a swing) or a stage."""
    swing = np.float32(SWING)
    still = np.float32(STILL)
    leg = np.float32(LEG)
    half = np.float32(0.5)
    start_y = y
    start_x = x
    before_y = np.float32(-9)
    before_x = np.float32(-9)
    for _ in range(max_steps):
        next_y, next_x = _step(pairs, y, x, last_y, last_x)
        apart = max(abs(next_y - before_y), abs(next_x - before_x))
        if apart < swing:
            back = (next_y - y) * (y - before_y) + (next_x - x) * (x - before_x)
            if back < 0 or apart < still:
                return (y + next_y) * half, (x + next_x) * half, True
        before_y = y
        before_x = x
        y = next_y
        x = next_x
        if max(abs(y - start_y), abs(x - start_x)) >= leg:
            return y, x, False
    return y, x, True


@kernel
def _follow(first, last, pairs, probability, threshold, max_steps, ends):  # type: ignore[no-untyped-def]
    height, width = probability.shape
    last_y = np.float32(height - 1)
    last_x = np.float32(width - 1)
    half = np.float32(0.5)
    for y in range(first, last):
        for x in range(width):
            ends[y, x] = -1
            if probability[y, x] > threshold:
                end_y, end_x, sink = _walk(pairs, np.float32(y), np.float32(x), last_y, last_x, max_steps)
                row, column = int(end_y + half), int(end_x + half)
                end = row * width + column
                # A stage outside every cell has no way on.
                ends[y, x] = end | SINK if sink or probability[row, column] <= threshold else end


@kernel
def _join(ends):  # type: ignore[no-untyped-def]
    """Joins legs to whole ways in place: each pixel takes over the end point of the pixel where its leg ends."""
    for _ in range(32):
        open_ways = 0
        for i in range(ends.size):
            end = ends[i]
            if end >= 0 and end & SINK == 0:
                ends[i] = ends[end]
                open_ways += 1
        if open_ways == 0:
            break
    for i in range(ends.size):
        if ends[i] >= 0:
            ends[i] &= SINK - 1


@kernel
def _count(ends, counts):  # type: ignore[no-untyped-def]
    flat = counts.ravel()
    for end in ends.ravel():
        if end >= 0:
            flat[end] += 1


@kernel
def _is_seed(counts, y, x):  # type: ignore[no-untyped-def]
    height, width = counts.shape
    value = counts[y, x]
    for v in range(max(y - SEED_RADIUS, 0), min(y + SEED_RADIUS + 1, height)):
        for u in range(max(x - SEED_RADIUS, 0), min(x + SEED_RADIUS + 1, width)):
            if counts[v, u] > value:
                return False
    return True


@kernel
def _find_seeds(counts):  # type: ignore[no-untyped-def]
    height, width = counts.shape
    seeds = np.empty(max(counts.size // (SEED_COUNT + 1), 1), np.int64)
    found = 0
    for y in range(height):
        for x in range(width):
            if counts[y, x] > SEED_COUNT and _is_seed(counts, y, x):
                seeds[found] = y * width + x
                found += 1
    return seeds[:found].copy()


@kernel
def _grow(counts, seeds, owners):  # type: ignore[no-untyped-def]
    """Grows each seed GROW_RADIUS times by 3×3 where more than GROW_COUNT pixels end; later seeds overwrite."""
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


@kernel
def _assign(ends, owners):  # type: ignore[no-untyped-def]
    flat = owners.ravel()
    labels = ends.ravel()
    for i in range(labels.size):
        labels[i] = flat[labels[i]] if labels[i] >= 0 else 0
