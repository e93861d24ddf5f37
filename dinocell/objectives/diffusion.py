"""Heat diffusion inside each cell, on its own bounding box: the arithmetic behind flow targets.

One step adds 1 at the cell's centre and replaces every pixel by a ninth of the sum of its 3×3 neighbours of the same
label (Stringer et al. 2021, Cellpose). Inside one cell that is a 3×3 box sum times a mask, so it runs as two
vectorised passes over the flattened, zero-bordered bounding box.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.objectives.cells import Cells
from dinocell.objectives.jit import kernel

# Between two neighbours heat falls by at most 9x, so boxes up to this side rarely leave float32's range; those that
# do are found and repeated in float64.
FLOAT32_SIDE = 64
FLOAT32_FLOOR = 1e-30
# Pixels per pass: two buffers of this size in float64 stay in the first-level cache.
CHUNK = 1536


def iterations(cells: Cells, shared: bool) -> npt.NDArray[np.int64]:
    """(n,) diffusion steps per cell: 2 (h + w + 2) of its own box, or with `shared` the largest of them for all."""
    steps = 2 * (cells.sides.sum(axis=1) + 2)
    if shared and len(steps):
        steps[:] = steps.max()
    return steps


def run(cells: Cells, threads: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls `function(first, last, *arguments)` on slices of the cells with about equal work, one per thread."""
    count = len(cells.numbers)
    if threads <= 1 or count < 2:
        function(0, count, *arguments)
        return
    sides = cells.sides
    work = np.cumsum(sides.prod(axis=1) * sides.sum(axis=1))
    parts = min(count, threads * 8)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(work, work[-1] * np.arange(1, parts) / parts), [count]]))
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(function, a, b, *arguments) for a, b in itertools.pairwise(cuts)]
        for job in jobs:
            job.result()


def fill_heat(first: int, last: int, cells: Cells, steps: npt.NDArray[np.int64], heat: npt.NDArray[np.float64]) -> None:
    """Writes the heat of cells `first` … `last - 1` into `heat` (H, W) float64 (parity variant)."""
    _heat_range(first, last, cells.labels, cells.numbers, cells.boxes, steps, heat)


def fill_flows(
    first: int, last: int, cells: Cells, steps: npt.NDArray[np.int64], flows: npt.NDArray[np.float32]
) -> None:
    """Writes the leak-free flows of cells `first` … `last - 1` into `flows` (2, H, W) float32."""
    _flows_range(first, last, cells.labels, cells.numbers, cells.boxes, steps, flows)


def sum_errors(
    first: int,
    last: int,
    cells: Cells,
    steps: npt.NDArray[np.int64],
    flows: npt.NDArray[np.float32],
    errors: npt.NDArray[np.float64],
) -> None:
    """Sums |flow(cell) − flows|² over each of the cells into `errors` (n,), leak-free flows."""
    _errors_range(first, last, cells.labels, cells.numbers, cells.boxes, steps, flows, errors)


@kernel
def _centre(labels, number, y0, y1, x0, x1):  # type: ignore[no-untyped-def]
    """Rounded centroid in box coordinates, snapped to the nearest pixel of the cell (first in reading order)."""
    sum_y = np.int64(0)
    sum_x = np.int64(0)
    count = np.int64(0)
    for y in range(y0, y1):
        for x in range(x0, x1):
            if labels[y, x] == number:
                sum_y += y - y0
                sum_x += x - x0
                count += 1
    mean_y = _round_half_even(sum_y, count)
    mean_x = _round_half_even(sum_x, count)
    if labels[y0 + mean_y, x0 + mean_x] == number:
        return mean_y, mean_x
    best = np.int64(2**62)
    best_y = np.int64(0)
    best_x = np.int64(0)
    for y in range(y0, y1):
        for x in range(x0, x1):
            distance = (y - y0 - mean_y) ** 2 + (x - x0 - mean_x) ** 2
            if labels[y, x] == number and distance < best:
                best, best_y, best_x = distance, y - y0, x - x0
    return best_y, best_x


@kernel
def _round_half_even(total, count):  # type: ignore[no-untyped-def]
    quotient = total // count
    twice = 2 * (total - quotient * count)
    if twice > count or (twice == count and quotient % 2 == 1):
        quotient += 1
    return quotient


@kernel
def _diffuse(heat, vertical, ninth, width, centre, steps):  # type: ignore[no-untyped-def]
    """Runs `steps` diffusion steps in place on the flattened box `heat` [rows · width]; its border stays 0.

    Stops early once no pixel changes by more than a few parts in 1e8 in a step: heat only grows, so what is left
    to come is a smooth change far below what a direction can show.
    """
    size = heat.size
    end = size - width
    tolerance = 1e-8 if heat.itemsize == 8 else 1.2e-7
    for step in range(steps):
        heat[centre] += 1
        check = step % 16 == 15
        change = heat[0] - heat[0]
        done = width
        start = width
        while start < end:
            stop = min(start + CHUNK, end)
            above = heat[start - width : stop - width]
            middle = heat[start:stop]
            below = heat[start + width : stop + width]
            total = vertical[start:stop]
            for i in range(stop - start):
                total[i] = above[i] + middle[i] + below[i]
            # A pixel may be overwritten once no later vertical sum reads it, a row behind.
            safe = stop - width if stop < end else end
            if safe > done:
                left = vertical[done - 1 : safe - 1]
                centre_sum = vertical[done:safe]
                right = vertical[done + 1 : safe + 1]
                target = heat[done:safe]
                weight = ninth[done:safe]
                if check:
                    for i in range(safe - done):
                        new = (left[i] + centre_sum[i] + right[i]) * weight[i]
                        change = max(change, (new - target[i]) - new * tolerance)
                        target[i] = new
                else:
                    for i in range(safe - done):
                        target[i] = (left[i] + centre_sum[i] + right[i]) * weight[i]
                done = safe
            start = stop
        if check and change <= 0:
            break


@kernel
def _load(labels, number, y0, y1, x0, x1, heat, vertical, ninth):  # type: ignore[no-untyped-def]
    """Zeroes the buffers and writes 1/9 inside the cell into `ninth`."""
    width = x1 - x0 + 2
    heat[:] = 0
    vertical[:] = 0
    ninth[:] = 0
    for y in range(y0, y1):
        row = ninth[(y - y0 + 1) * width + 1 : (y - y0 + 2) * width - 1]
        line = labels[y, x0:x1]
        for x in range(x1 - x0):
            if line[x] == number:
                row[x] = 1.0 / 9.0


@kernel
def _lowest(heat, ninth):  # type: ignore[no-untyped-def]
    lowest = heat.max()
    for i in range(heat.size):
        if ninth[i] > 0 and heat[i] < lowest:
            lowest = heat[i]
    return lowest


@kernel
def _solve(labels, number, box, steps, wide, narrow):  # type: ignore[no-untyped-def]
    """Heat of one cell into wide[0, : rows · width] (float64), its mask (1/9 inside) into wide[2]."""
    y0, y1, x0, x1 = box[0], box[1], box[2], box[3]
    width = x1 - x0 + 2
    size = (y1 - y0 + 2) * width
    centre_y, centre_x = _centre(labels, number, y0, y1, x0, x1)
    centre = (centre_y + 1) * width + centre_x + 1
    _load(labels, number, y0, y1, x0, x1, wide[0, :size], wide[1, :size], wide[2, :size])
    if max(y1 - y0, x1 - x0) <= FLOAT32_SIDE:
        heat = narrow[0, :size]
        _load(labels, number, y0, y1, x0, x1, heat, narrow[1, :size], narrow[2, :size])
        _diffuse(heat, narrow[1, :size], narrow[2, :size], width, centre, steps)
        if _lowest(heat, narrow[2, :size]) > FLOAT32_FLOOR:
            for i in range(size):
                wide[0, i] = heat[i]
            return
    _diffuse(wide[0, :size], wide[1, :size], wide[2, :size], width, centre, steps)


@kernel
def _workspace(first, last, boxes):  # type: ignore[no-untyped-def]
    largest = 1
    largest_narrow = 1
    for k in range(first, last):
        rows = boxes[k, 1] - boxes[k, 0] + 2
        columns = boxes[k, 3] - boxes[k, 2] + 2
        largest = max(largest, rows * columns)
        if max(rows, columns) <= FLOAT32_SIDE + 2:
            largest_narrow = max(largest_narrow, rows * columns)
    return np.empty((3, largest), np.float64), np.empty((3, largest_narrow), np.float32)


@kernel
def _unit(dy, dx):  # type: ignore[no-untyped-def]
    """(dy, dx) at length 1, or (0, 0); scaled first, so that squares of tiny differences do not underflow."""
    scale = max(abs(dy), abs(dx))
    if scale == 0:
        return 0.0, 0.0
    dy /= scale
    dx /= scale
    norm = np.sqrt(dy * dy + dx * dx)
    return dy / norm, dx / norm


@kernel
def _heat_range(first, last, labels, numbers, boxes, steps, heat):  # type: ignore[no-untyped-def]
    wide, narrow = _workspace(first, last, boxes)
    for k in range(first, last):
        box = boxes[k]
        _solve(labels, numbers[k], box, steps[k], wide, narrow)
        width = box[3] - box[2] + 2
        for y in range(box[0], box[1]):
            row = (y - box[0] + 1) * width + 1 - box[2]
            for x in range(box[2], box[3]):
                if wide[2, row + x] > 0:
                    heat[y, x] = wide[0, row + x]


@kernel
def heat_flow(heat, y, x):  # type: ignore[no-untyped-def]
    """Unit flow at a pixel from central differences of `heat` (H, W), 0 beyond the image, as Cellpose's padding."""
    height, width = heat.shape
    up = heat[y - 1, x] if y > 0 else 0.0
    down = heat[y + 1, x] if y + 1 < height else 0.0
    left = heat[y, x - 1] if x > 0 else 0.0
    right = heat[y, x + 1] if x + 1 < width else 0.0
    return _unit(down - up, right - left)


@kernel
def heat_to_flows(labels, heat, flows):  # type: ignore[no-untyped-def]
    """Unit flows (2, H, W) of all cells from their heat, across cell borders (parity variant)."""
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                flows[0, y, x], flows[1, y, x] = heat_flow(heat, y, x)


@kernel
def heat_errors(labels, index, heat, flows, errors):  # type: ignore[no-untyped-def]
    """Sums |flow(heat) − flows|² over each cell into `errors` (n,) (parity variant)."""
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                dy, dx = heat_flow(heat, y, x)
                errors[index[labels[y, x]]] += (dy - flows[0, y, x]) ** 2 + (dx - flows[1, y, x]) ** 2


@kernel
def _flows_range(first, last, labels, numbers, boxes, steps, flows):  # type: ignore[no-untyped-def]
    wide, narrow = _workspace(first, last, boxes)
    for k in range(first, last):
        box = boxes[k]
        _solve(labels, numbers[k], box, steps[k], wide, narrow)
        width = box[3] - box[2] + 2
        for y in range(box[0], box[1]):
            for x in range(box[2], box[3]):
                i = (y - box[0] + 1) * width + 1 + x - box[2]
                if wide[2, i] > 0:
                    dy, dx = _unit(wide[0, i + width] - wide[0, i - width], wide[0, i + 1] - wide[0, i - 1])
                    flows[0, y, x] = dy
                    flows[1, y, x] = dx


@kernel
def _errors_range(first, last, labels, numbers, boxes, steps, flows, errors):  # type: ignore[no-untyped-def]
    wide, narrow = _workspace(first, last, boxes)
    for k in range(first, last):
        box = boxes[k]
        _solve(labels, numbers[k], box, steps[k], wide, narrow)
        width = box[3] - box[2] + 2
        for y in range(box[0], box[1]):
            for x in range(box[2], box[3]):
                i = (y - box[0] + 1) * width + 1 + x - box[2]
                if wide[2, i] > 0:
                    dy, dx = _unit(wide[0, i + width] - wide[0, i - width], wide[0, i + 1] - wide[0, i - 1])
                    errors[k] += (dy - flows[0, y, x]) ** 2 + (dx - flows[1, y, x]) ** 2
