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

from dinocell.core.jit import compiled
from dinocell.labels.cells import Cells

# Pixels per pass: the buffers of this size in float32 stay in the first-level cache.
CHUNK = 3072
# Pixels times half the steps, about 7 ms, below which starting threads costs more than they save.
LEAST_WORK = 10_000_000
# Stop once no pixel changes by more than this part of itself in a step: heat only grows, and what is left to come is
# a smooth change far below what a direction can show.
SETTLED = 1e-8
# Differences below this part of the heat are rounding: the point is flat.
FLAT = 1e-9
# Last steps of each cell, in float64.
POLISH = 16
# Heat added in each step. A power of two scales exactly, and a large one keeps the far end of a cell a normal float32.
HEAT = 2.0**100
# Heat below which float32 loses digits: a cell so long is solved again in float64.
FAINT = 1e-30


def iterations(cells: Cells, shared: bool) -> npt.NDArray[np.int64]:
    """(n,) diffusion steps per cell: 2 (h + w + 2) of its box, or with `shared` the largest of them for all."""
    steps = 2 * (cells.sides.sum(axis=1) + 2)
    if shared and len(steps):
        steps[:] = steps.max()
    return steps


def run(cells: Cells, threads: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(first, last, *arguments)` on slices of the cells with about equal work, one per thread."""
    count = len(cells.numbers)
    sides = cells.sides
    work = np.cumsum(sides.prod(axis=1) * sides.sum(axis=1))
    if threads <= 1 or count < 2 or work[-1] < LEAST_WORK:
        function(0, count, *arguments)
        return
    parts = min(count, threads * 8)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(work, work[-1] * np.arange(1, parts) / parts), [count]]))
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(function, a, b, *arguments) for a, b in itertools.pairwise(cuts)]
        for job in jobs:
            job.result()


def fill_heat(first: int, last: int, cells: Cells, steps: npt.NDArray[np.int64], heat: npt.NDArray[np.float64]) -> None:
    """Write the heat of cells `first` … `last - 1` into `heat` (H, W) float64 (parity variant)."""
    nothing = np.empty((2, 0, 0), np.float32)
    _solve_range(first, last, cells.labels, cells.numbers, cells.boxes, steps, True, heat, nothing)


def fill_flows(
    first: int, last: int, cells: Cells, steps: npt.NDArray[np.int64], flows: npt.NDArray[np.float32]
) -> None:
    """Write the leak-free flows of cells `first` … `last - 1` into `flows` (2, H, W) float32."""
    nothing = np.empty((0, 0), np.float64)
    _solve_range(first, last, cells.labels, cells.numbers, cells.boxes, steps, False, nothing, flows)


@compiled(fast=True)
def _sources(labels, number, box, cellpose):  # type: ignore[no-untyped-def]
    """Find the pixels where the cell's heat starts: (n, 2), (row, column) inside the box.

    Cellpose: the pixel nearest to the rounded centroid, first in reading order. Otherwise: all pixels nearest to the
    centroid, a choice that turns and flips with the cell.
    """
    sum_y = np.int64(0)
    sum_x = np.int64(0)
    count = np.int64(0)
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            if labels[y, x] == number:
                sum_y += y - box[0]
                sum_x += x - box[1]
                count += 1
    if cellpose:
        sum_y = count * _round_half_even(sum_y, count)
        sum_x = count * _round_half_even(sum_x, count)
    found = np.empty((1 if cellpose else count, 2), np.int64)
    ties = 0
    best = np.inf
    for y in range(box[2] - box[0]):
        for x in range(box[3] - box[1]):
            if labels[box[0] + y, box[1] + x] == number:
                distance = float(count * y - sum_y) ** 2 + float(count * x - sum_x) ** 2
                if distance < best:
                    best = distance
                    ties = 0
                if distance == best and ties < len(found):
                    found[ties] = y, x
                    ties += 1
    return found[:ties]


@compiled(fast=True)
def _round_half_even(total, count):  # type: ignore[no-untyped-def]
    quotient = total // count
    twice = 2 * (total - quotient * count)
    if twice > count or (twice == count and quotient % 2 == 1):
        quotient += 1
    return quotient


@compiled(fast=True)
def _layout(labels, number, box, spans):  # type: ignore[no-untyped-def]
    """Choose stride and first column of the flattened cell: pixel (y, x) is at (y + 1) · stride + x − first + 1.

    Rows may overlap in columns as long as no pixel of the cell meets one that is not its neighbour, so a slanting
    cell takes the room of its rows and not of its box. That is so if each row's pixels end two before those of the
    next two rows begin, one and two strides on, and likewise upwards.
    """
    height = box[2] - box[0]
    for y in range(height):
        spans[y, 0], spans[y, 1] = box[3], -1
        for x in range(box[1], box[3]):
            if labels[box[0] + y, x] == number:
                spans[y, 0] = min(spans[y, 0], x - box[1])
                spans[y, 1] = x - box[1]
        if spans[y, 1] < 0:  # a cell in pieces, with an empty row between them
            return box[3] - box[1] + 2, 0
    stride = 0
    for y in range(height):
        for other in range(max(y - 2, 0), min(y + 3, height)):
            stride = max(stride, spans[y, 1] - spans[other, 0] + 2)
    return stride, spans[0, 0]


@compiled(fast=True)
def _load(labels, number, box, stride, first, heat, vertical, ninth):  # type: ignore[no-untyped-def]
    """Zero the buffers and write 1/9 inside the cell into `ninth`."""
    for i in range(heat.size):
        heat[i] = 0.0
        vertical[i] = 0.0
        ninth[i] = 0.0
    for y in range(box[0], box[2]):
        row = (y - box[0] + 1) * stride + 1 - first - box[1]
        for x in range(box[1], box[3]):
            if labels[y, x] == number:
                ninth[row + x] = 1.0 / 9.0


@compiled(fast=True)
def _diffuse(heat, vertical, ninth, stride, sources, steps):  # type: ignore[no-untyped-def]
    """Run `steps` diffusion steps in place on the flattened cell `heat`; its surroundings stay 0."""
    begin = stride + 1
    end = heat.size - stride - 1
    for step in range(steps):
        for source in sources:
            heat[source] += HEAT / len(sources)
        check = step % 16 == 15
        change = 0.0
        done = begin
        start = begin - 1
        while start <= end:
            stop = min(start + CHUNK, end + 1)
            above = heat[start - stride : stop - stride]
            middle = heat[start:stop]
            below = heat[start + stride : stop + stride]
            total = vertical[start:stop]
            for i in range(stop - start):
                total[i] = (above[i] + below[i]) + middle[i]
            # A pixel may be overwritten once no later vertical sum reads it, a row behind.
            safe = stop - stride if stop <= end else end
            if safe > done:
                change = max(change, _spread(vertical, ninth, heat, done, safe, check))
                done = safe
            start = stop
        if check and change <= 0:
            break


@compiled(fast=True)
def _spread(vertical, ninth, heat, first, last, check):  # type: ignore[no-untyped-def]
    """heat[first:last] ← horizontal sums · ninth; with `check` the largest change beyond SETTLED."""
    left = vertical[first - 1 : last - 1]
    middle = vertical[first:last]
    right = vertical[first + 1 : last + 1]
    target = heat[first:last]
    weight = ninth[first:last]
    change = 0.0
    if check:
        for i in range(last - first):
            new = ((left[i] + right[i]) + middle[i]) * weight[i]
            change = max(change, (new - target[i]) - new * SETTLED)
            target[i] = new
    else:
        for i in range(last - first):
            target[i] = ((left[i] + right[i]) + middle[i]) * weight[i]
    return change


@compiled(fast=True)
def _solve(labels, number, box, places, stride, first, steps, single, double):  # type: ignore[no-untyped-def]
    """Solve the heat of one cell into double[0] (× HEAT), its mask (1/9 inside) into double[2].

    The first steps run in float32 at twice the speed, the last POLISH in float64: what float32 rounds is noise from
    pixel to pixel, which diffusion itself smooths away.
    """
    size = (box[2] - box[0] + 2) * stride + box[3] - box[1] + 2
    sources = np.empty(len(places), np.int64)
    for i in range(len(places)):
        sources[i] = (places[i, 0] + 1) * stride + places[i, 1] + 1 - first
    rough, vertical, ninth = single[0, :size], single[1, :size], single[2, :size]
    _load(labels, number, box, stride, first, rough, vertical, ninth)
    _diffuse(rough, vertical, ninth, stride, sources, max(steps - POLISH, 0))
    # A piece of the cell away from the centre stays at zero; heat that grows too small leaves small values around
    # what it has lost.
    faint = False
    for i in range(size):
        faint |= 0 < rough[i] < FAINT
    heat, vertical, ninth = double[0, :size], double[1, :size], double[2, :size]
    _load(labels, number, box, stride, first, heat, vertical, ninth)
    if faint:
        _diffuse(heat, vertical, ninth, stride, sources, steps)
        return
    for i in range(size):
        heat[i] = rough[i]
    _diffuse(heat, vertical, ninth, stride, sources, min(steps, POLISH))


@compiled(fast=True)
def _longest(first, last, boxes):  # type: ignore[no-untyped-def]
    """Count elements of the largest flattened cell, and rows of the tallest one."""
    largest = 1
    tallest = 1
    for k in range(first, last):
        height, width = boxes[k, 2] - boxes[k, 0], boxes[k, 3] - boxes[k, 1]
        largest = max(largest, (height + 2) * (width + 2) + width + 2)
        tallest = max(tallest, height)
    return largest, tallest


@compiled(fast=True)
def _unit(dy, dx, heat):  # type: ignore[no-untyped-def]
    """(dy, dx) at length 1, or (0, 0) at a flat point; scaled first, so that tiny squares do not underflow."""
    scale = max(abs(dy), abs(dx))
    if scale <= heat * FLAT:
        return 0.0, 0.0
    scale = 1.0 / scale
    dy *= scale
    dx *= scale
    scale = 1.0 / np.sqrt(dy * dy + dx * dx)
    return dy * scale, dx * scale


@compiled(fast=True)
def _write(labels, number, box, stride, first, solved, cellpose, heat, flows):  # type: ignore[no-untyped-def]
    """Copy one cell's heat into `heat`, or its own flows (leak-free) into `flows`."""
    for y in range(box[0], box[2]):
        row = (y - box[0] + 1) * stride + 1 - first - box[1]
        for x in range(box[1], box[3]):
            if labels[y, x] != number:
                continue
            i = row + x
            if cellpose:
                heat[y, x] = solved[i] / HEAT
            else:
                dy = np.float64(solved[i + stride]) - solved[i - stride]
                dx = np.float64(solved[i + 1]) - solved[i - 1]
                flows[0, y, x], flows[1, y, x] = _unit(dy, dx, np.float64(solved[i]))


@compiled(fast=True)
def _solve_range(first, last, labels, numbers, boxes, steps, cellpose, heat, flows):  # type: ignore[no-untyped-def]
    """Solve heat (parity variant) or flows (leak-free) of a range of cells; one kernel: the solver compiles slowly."""
    largest, tallest = _longest(first, last, boxes)
    single = np.empty((3, largest), np.float32)
    double = np.empty((3, largest), np.float64)
    spans = np.empty((tallest, 2), np.int64)
    for k in range(first, last):
        number, box = numbers[k], boxes[k]
        places = _sources(labels, number, box, cellpose)
        stride, column = _layout(labels, number, box, spans)
        _solve(labels, number, box, places, stride, column, steps[k], single, double)
        _write(labels, number, box, stride, column, double[0], cellpose, heat, flows)


@compiled(fast=True)
def _heat_flow(heat, y, x):  # type: ignore[no-untyped-def]
    """Compute the unit flow at a pixel by central differences of `heat` (H, W), 0 beyond the image as Cellpose pads."""
    height, width = heat.shape
    up = heat[y - 1, x] if y > 0 else 0.0
    down = heat[y + 1, x] if y + 1 < height else 0.0
    left = heat[y, x - 1] if x > 0 else 0.0
    right = heat[y, x + 1] if x + 1 < width else 0.0
    return _unit(down - up, right - left, heat[y, x])


@compiled(fast=True)
def clear(boxes, heat):  # type: ignore[no-untyped-def]
    """Zero `heat` (H, W) in the cells' boxes and one pixel around: only the part that is read, often a small one."""
    height, width = heat.shape
    for k in range(len(boxes)):
        left, right = max(boxes[k, 1] - 1, 0), min(boxes[k, 3] + 1, width)
        for y in range(max(boxes[k, 0] - 1, 0), min(boxes[k, 2] + 1, height)):
            heat[y, left:right] = 0.0


@compiled(fast=True)
def heat_to_flows(labels, numbers, boxes, heat, flows):  # type: ignore[no-untyped-def]
    """Compute unit flows (2, H, W) of all cells from their heat, across cell borders (parity variant)."""
    for k in range(len(numbers)):
        box = boxes[k]
        for y in range(box[0], box[2]):
            for x in range(box[1], box[3]):
                if labels[y, x] == numbers[k]:
                    flows[0, y, x], flows[1, y, x] = _heat_flow(heat, y, x)


@compiled(fast=True)
def heat_errors(labels, numbers, boxes, heat, flows, errors):  # type: ignore[no-untyped-def]
    """Sum |flow(heat) − flows|² over each cell into `errors` (n,) (parity variant)."""
    for k in range(len(numbers)):
        box = boxes[k]
        total = 0.0
        for y in range(box[0], box[2]):
            for x in range(box[1], box[3]):
                if labels[y, x] == numbers[k]:
                    dy, dx = _heat_flow(heat, y, x)
                    total += (dy - flows[0, y, x]) ** 2 + (dx - flows[1, y, x]) ** 2
        errors[k] = total


@compiled(fast=True)
def flow_differences(labels, index, own, flows, errors):  # type: ignore[no-untyped-def]
    """Sum |own − flows|² over each cell into `errors` (n,) (leak-free variant)."""
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                dy, dx = own[0, y, x] - flows[0, y, x], own[1, y, x] - flows[1, y, x]
                errors[index[labels[y, x]]] += dy * dy + dx * dx
