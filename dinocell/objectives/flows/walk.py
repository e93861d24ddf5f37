"""Euler integration of every pixel along the flow to its end, as Cellpose does it (Stringer et al. 2021), step by step.

Cellpose samples the flow at p · L / (L − 1) − ½ along a side of L pixels (its grid runs between pixel centres, its
sampling between pixel borders), takes 200 steps whatever happens, and cuts end points to whole pixels. Where flows are
clean none of this shows; where they are noise it decides which pixels gather to a cell. So it is kept to the step.
Here the waiting is saved: a pixel that has arrived swings across a ridge or stands still, and its place after the last
step is then known. And a pixel still on its way after the last step may continue, so that long cells come back whole.

Pixels walk in batches whose state fits the first-level cache, one kernel per kind of work so that each vectorises.
A position is kept as the way from its start, exact to float32 wherever in an image it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled
from dinocell.objectives.base import Frame

MAX_STEPS = 200
# A pixel has arrived when it is back within SWING px of where it was two steps ago, or moves less than STILL px in two.
SWING = 0.05
STILL = 0.001
# After the last step a pixel continues as long as it makes GOING px (either axis) in its latest PROBE steps.
PROBE = 20
GOING = 10.0
# Flows beyond this (px a step) are garbage, not motion.
FASTEST = np.float32(1e4)
BATCH = 256
# Pixels of a row that are looked at together, to pass over empty ground in strides.
BLOCK = 32
# Walking pixels, about 4 ms, below which starting threads costs more than they save.
LEAST_PIXELS = 1 << 16

# Rows of a batch's state. Three pairs of rows take turns as the way before, now and next.
WAYS, LIMITS, SAMPLING, FRACTION, MARK, STATE_ROWS = 0, 6, 10, 12, 14, 16


def rows_in_threads(threads: int, height: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function(first_row, last_row, *arguments)` on bands of rows, one call after another or in threads."""
    if threads <= 1:
        function(0, height, *arguments)
        return
    cuts = np.linspace(0, height, threads * 4 + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(function, a, b, *arguments) for a, b in itertools.pairwise(cuts)]
        for job in jobs:
            job.result()


def sampling(length: int, start: int, count: int) -> tuple[np.float32, npt.NDArray[np.float32]]:
    """Compute scale and, for `count` pixels from `start`, offsets of Cellpose's sampling along a side of `length` px.

    A pixel at p = start + way samples at p + offset + way · (scale − 1); see the module's docstring.
    """
    if length == 1:
        return np.float32(1), np.zeros(count, np.float32)
    offset = (start + np.arange(count)) / (length - 1) - 0.5
    return np.float32(length / (length - 1)), offset.astype(np.float32)


def end_points(
    flows: npt.NDArray[np.float32],
    probability: npt.NDArray[np.float32],
    threshold: float,
    max_steps: int = MAX_STEPS,
    threads: int = 1,
    frame: Frame | None = None,
) -> npt.NDArray[np.int32]:
    """Find the flat index of the pixel where each pixel with probability > threshold ends; −1 elsewhere.

    Args:
        flows: (2, H, W) float32, pixels per step.
        probability: (H, W) float32.
        threshold: pixels at or below it neither move nor attract.
        max_steps: Euler steps; a pixel that is then still going may take up to H + W more.
        threads: threads that share the rows.
        frame: position of the maps in a larger image; default: they are the image.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: an image of 2³⁰ pixels or more; decode such an image in blocks.
    """
    height, width = probability.shape
    if probability.size >= 1 << 30:
        raise ValueError(f"an image of {height} × {width} pixels is too large to decode whole; decode it in blocks")
    frame = frame or Frame(y=0, x=0, height=height, width=width)
    pairs = np.zeros((height + 2, width + 2, 2), np.float32)  # a border of 0, as Cellpose's padding
    busy = np.zeros((height, -(-width // BLOCK)), np.bool_)
    inside = _interleave(flows, probability, np.float32(threshold), pairs, busy)
    scale_y, offset_y = sampling(frame.height, frame.y, height)
    scale_x, offset_x = sampling(frame.width, frame.x, width)
    ends = np.empty((height, width), np.int32)
    # One float64 is one pixel's pair: copied as a whole, read as two.
    rows_in_threads(
        threads if inside >= LEAST_PIXELS else 1,
        height,
        _follow_rows,
        pairs.view(np.float64).ravel(),
        probability,
        np.float32(threshold),
        busy,
        max_steps,
        (scale_y, scale_x),
        offset_y,
        offset_x,
        ends,
    )
    return ends


def _follow_rows(first: int, last: int, *arguments: Any) -> None:
    corners = np.empty((4, BATCH), np.float64)
    work = (*arguments, corners, corners.view(np.float32))
    _follow(first, last, *work)


@compiled(fast=True)
def _any_above(probability, threshold):  # type: ignore[no-untyped-def]
    """Check for any pixel above the threshold; a loop without a branch, so that it vectorises."""
    found = False
    for i in range(probability.size):
        found |= probability[i] > threshold
    return found


@compiled(fast=True)
def _interleave(flows, probability, threshold, pairs, busy):  # type: ignore[no-untyped-def]
    """Fill `pairs`, mark the blocks with pixels above the threshold, and return the number of such pixels."""
    height, width = probability.shape
    flat = probability.ravel()
    inside = 0
    for y in range(height):
        for block in range(busy.shape[1]):
            first, last = block * BLOCK, min((block + 1) * BLOCK, width)
            if not _any_above(flat[y * width + first : y * width + last], threshold):
                continue
            busy[y, block] = True
            for x in range(first, last):
                if probability[y, x] > threshold:
                    inside += 1
                    dy, dx = flows[0, y, x], flows[1, y, x]
                    # False for NaN too: a pixel without a usable flow stays where it is.
                    if abs(dy) < FASTEST and abs(dx) < FASTEST:
                        pairs[y + 1, x + 1, 0] = dy
                        pairs[y + 1, x + 1, 1] = dx
    return inside


@compiled(fast=True)
def _follow(  # type: ignore[no-untyped-def]
    first, last, pairs, probability, threshold, busy, max_steps, scale, offset_y, offset_x, ends, corners, halves
):
    """Fill rows `first` … `last - 1` of `ends`, a batch of pixels after the other."""
    height, width = probability.shape
    row_length = np.int32(width + 2)
    starts = np.empty((2, BATCH), np.int64)
    state = np.empty((STATE_ROWS, BATCH), np.float32)
    places = np.empty((3, BATCH), np.int32)
    count = 0
    ends[first:last] = -1
    for y in range(first, last):
        for block in range(busy.shape[1]):
            if not busy[y, block]:
                continue
            for x in range(block * BLOCK, min((block + 1) * BLOCK, width)):
                if not probability[y, x] > threshold:
                    continue
                starts[0, count], starts[1, count] = y, x
                places[0, count] = (y + 1) * row_length + x + 1
                state[LIMITS, count], state[LIMITS + 1, count] = -y, height - 1 - y
                state[LIMITS + 2, count], state[LIMITS + 3, count] = -x, width - 1 - x
                state[SAMPLING, count], state[SAMPLING + 1, count] = offset_y[y], offset_x[x]
                count += 1
                if count == BATCH:
                    _walk(pairs, row_length, count, max_steps, scale, starts, state, places, corners, halves, ends)
                    count = 0
    _walk(pairs, row_length, count, max_steps, scale, starts, state, places, corners, halves, ends)


@compiled(fast=True)
def _walk(pairs, row_length, count, max_steps, scale, starts, state, places, corners, halves, ends):  # type: ignore[no-untyped-def]
    """Walk `count` pixels to their ends."""
    for k in range(count):
        state[WAYS, k] = state[WAYS + 1, k] = state[MARK, k] = state[MARK + 1, k] = 0.0
        state[WAYS + 2, k] = state[WAYS + 3, k] = -9.0
    now, before, ahead = WAYS, WAYS + 2, WAYS + 4
    limit = max_steps + ends.shape[0] + ends.shape[1]
    step = 0
    while count > 0 and step < limit:
        if step >= max_steps and (step - max_steps) % PROBE == 0:
            for k in range(count):
                made = max(abs(state[now, k] - state[MARK, k]), abs(state[now + 1, k] - state[MARK + 1, k]))
                places[2, k] = 0 if made >= GOING else 1
            count = _retire(count, now, starts, state, places, ends)
        if (max_steps - step) % PROBE == 0:
            for k in range(count):
                state[MARK, k], state[MARK + 1, k] = state[now, k], state[now + 1, k]
        _locate(count, row_length, state[now : now + 2], state, scale, places)
        _collect(count, row_length, pairs, places, corners)
        way, last, new = state[now : now + 2], state[before : before + 2], state[ahead : ahead + 2]
        if _advance(count, halves, state, way, last, new, places[2]):
            # A swing of two steps: where the last step leaves the pixel depends on how many are left.
            there = now if step < max_steps and (max_steps - step) % 2 == 0 else ahead
            count = _retire(count, there, starts, state, places, ends)
        before, now, ahead = now, ahead, before
        step += 1
    for k in range(count):
        _end(k, now, starts, state, ends)


@compiled(fast=True)
def _locate(count, row_length, way, state, scale, places):  # type: ignore[no-untyped-def]
    """Find the place where each pixel samples: index of the upper left corner, and the fractions beyond it."""
    for k in range(count):
        y = way[0, k] * scale[0] + state[SAMPLING, k]
        x = way[1, k] * scale[1] + state[SAMPLING + 1, k]
        row, column = np.floor(y), np.floor(x)
        places[1, k] = places[0, k] + np.int32(row) * row_length + np.int32(column)
        state[FRACTION, k] = y - row
        state[FRACTION + 1, k] = x - column


@compiled(fast=True)
def _collect(count, row_length, pairs, places, corners):  # type: ignore[no-untyped-def]
    """Copy the flows at the four corners of each pixel; unsigned indices, as they need no check of their sign."""
    one = np.uint64(1)
    for k in range(count):
        upper = np.uint64(places[1, k])
        lower = np.uint64(places[1, k] + row_length)
        corners[0, k] = pairs[upper]
        corners[1, k] = pairs[upper + one]
        corners[2, k] = pairs[lower]
        corners[3, k] = pairs[lower + one]


@compiled(fast=True)
def _advance(count, halves, state, way, last, new, arrived):  # type: ignore[no-untyped-def]
    """Take one Euler step with bilinear sampling, clamped to the maps; mark who has arrived and return how many."""
    swing, still = np.float32(SWING), np.float32(STILL)
    a, b, c, d = halves[0], halves[1], halves[2], halves[3]
    fraction_y, fraction_x = state[FRACTION], state[FRACTION + 1]
    least_y, most_y, least_x, most_x = state[LIMITS], state[LIMITS + 1], state[LIMITS + 2], state[LIMITS + 3]
    total = np.int32(0)
    for k in range(count):
        v, u = fraction_y[k], fraction_x[k]
        upper = a[2 * k] + u * (b[2 * k] - a[2 * k])
        lower = c[2 * k] + u * (d[2 * k] - c[2 * k])
        move_y = upper + v * (lower - upper)
        upper = a[2 * k + 1] + u * (b[2 * k + 1] - a[2 * k + 1])
        lower = c[2 * k + 1] + u * (d[2 * k + 1] - c[2 * k + 1])
        move_x = upper + v * (lower - upper)
        y = min(max(way[0, k] + move_y, least_y[k]), most_y[k])
        x = min(max(way[1, k] + move_x, least_x[k]), most_x[k])
        apart = max(abs(y - last[0, k]), abs(x - last[1, k]))
        back = (y - way[0, k]) * (way[0, k] - last[0, k]) + (x - way[1, k]) * (way[1, k] - last[1, k])
        here = np.int32((apart < swing) & ((back < 0) | (apart < still)))
        arrived[k] = here
        total += here
        new[0, k], new[1, k] = y, x
    return total


@compiled(fast=True)
def _end(k, way, starts, state, ends):  # type: ignore[no-untyped-def]
    """Write where pixel k ends, cut to a whole pixel."""
    y, x = starts[0, k], starts[1, k]
    row, column = y + np.int64(np.floor(state[way, k])), x + np.int64(np.floor(state[way + 1, k]))
    ends[y, x] = row * ends.shape[1] + column


@compiled(fast=True)
def _retire(count, way, starts, state, places, ends):  # type: ignore[no-untyped-def]
    """Take the marked pixels out of the batch, each replaced by the last one; return how many are left."""
    for k in range(count - 1, -1, -1):
        if places[2, k] == 0:
            continue
        _end(k, way, starts, state, ends)
        count -= 1
        if k < count:
            starts[0, k], starts[1, k] = starts[0, count], starts[1, count]
            places[0, k] = places[0, count]
            for row in range(STATE_ROWS):
                state[row, k] = state[row, count]
    return count
