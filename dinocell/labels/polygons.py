"""Exact polygons of cells: rings along pixel edges, whose area is the cell's number of pixels.

Neighbouring cells share their edges, so polygons of touching cells neither overlap nor leave gaps. Corner (x, y) is
the upper left corner of pixel (row y, column x): the pixel coordinates of QuPath and of ImageJ's polygon ROIs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core.jit import compiled
from dinocell.labels.cells import renumber

Ring = NDArray[np.int32]


@dataclass(frozen=True)
class Polygon:
    """One connected part of a cell.

    Attributes:
        exterior: (n, 2) int32 corners x, y in order, not repeated at the end.
        holes: rings of the same kind.
    """

    exterior: Ring
    holes: tuple[Ring, ...] = ()


def cell_polygons(labels: NDArray[np.integer[Any]]) -> Iterator[tuple[int, list[Polygon]]]:
    """(label, polygons) of every cell of (H, W) labels, ascending; several polygons where a cell is in pieces.

    Pixels that touch only by a corner are separate pieces, so every ring is a simple polygon.
    """
    numbers: NDArray[Any] | None = None
    if labels.max(initial=0) > labels.size:  # sparse numbering would cost a slot for every number left out
        numbers = np.unique(labels)
        numbers = numbers[numbers != 0]
        labels, _ = renumber(labels)
    boxes = ndimage.find_objects(labels.astype(np.int32, copy=False))
    for number, box in enumerate(boxes, start=1):
        if box is not None:
            label = number if numbers is None else int(numbers[number - 1])
            yield label, mask_polygons(labels[box] == number, box[1].start, box[0].start)


def mask_polygons(mask: NDArray[np.bool_], x0: int = 0, y0: int = 0) -> list[Polygon]:
    """Polygons of the True pixels of (h, w) whose upper left corner is at (x0, y0); largest first."""
    if not mask.any():
        return []
    pieces, count = ndimage.label(mask)  # 4-connected: one exterior ring each
    corners, ends, areas, owners = _rings(_edges(mask), pieces)
    exteriors: dict[int, tuple[int, Ring]] = {}
    holes: dict[int, list[Ring]] = {}
    shift = np.array([x0, y0], np.int32)
    for ring, area, owner in zip(np.split(corners + shift, ends[:-1]), areas.tolist(), owners.tolist(), strict=True):
        if area > 0:
            exteriors[owner] = (area, ring)
        else:
            holes.setdefault(owner, []).append(ring)
    assert len(exteriors) == count
    order = sorted(exteriors, key=lambda owner: -exteriors[owner][0])
    return [Polygon(exteriors[owner][1], tuple(holes.get(owner, ()))) for owner in order]


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Directions in which pixel edges leave each corner (h + 1, w + 1), walking with the cell on the right.

    Bits: 1 right (a top edge), 2 down (a right edge), 4 left (a bottom edge), 8 up (a left edge).
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.uint8)
    edges[:-1, :-1] |= (inside & ~padded[:-2, 1:-1]).astype(np.uint8)
    edges[:-1, 1:] |= (inside & ~padded[1:-1, 2:]).astype(np.uint8) << 1
    edges[1:, 1:] |= (inside & ~padded[2:, 1:-1]).astype(np.uint8) << 2
    edges[1:, :-1] |= (inside & ~padded[1:-1, :-2]).astype(np.uint8) << 3
    return edges


@compiled()
def _rings(edges, pieces):  # type: ignore[no-untyped-def]
    """Closed simple rings that use every edge once.

    A walk that comes back to a corner it has passed gives the loop since then as a separate ring, so that no ring
    touches itself. Only turns are kept.

    Returns:
        corners (n, 2) int32 x, y of all rings; the end of each ring in them; twice the signed area (x right, y down:
        positive for exteriors, negative for holes); the piece (label in `pieces`) that each ring bounds.
    """
    height, width = edges.shape
    step_x = (1, 0, -1, 0)
    step_y = (0, 1, 0, -1)
    count = 0
    for y in range(height):
        for x in range(width):
            for bit in range(4):
                count += (edges[y, x] >> bit) & 1
    corners = np.empty((count, 2), np.int32)
    ends = np.empty(count, np.int64)
    areas = np.empty(count, np.int64)
    owners = np.empty(count, np.int64)
    path_x = np.empty(count + 1, np.int32)
    path_y = np.empty(count + 1, np.int32)
    path_d = np.empty(count + 1, np.int8)
    position = np.full((height, width), -1, np.int64)
    rings = 0
    filled = 0
    for start_y in range(height):
        for start_x in range(width):
            while edges[start_y, start_x]:
                length = 0
                x, y, direction = start_x, start_y, -1
                while edges[y, x]:
                    # Where two pixels touch by a corner, the right turn stays on the same pixel.
                    turned = (direction + 1) % 4
                    if direction < 0 or not (edges[y, x] >> turned) & 1:
                        turned = 0
                        while not (edges[y, x] >> turned) & 1:
                            turned += 1
                    direction = turned
                    edges[y, x] &= ~np.uint8(1 << direction)
                    path_x[length], path_y[length], path_d[length] = x, y, direction
                    position[y, x] = length
                    length += 1
                    x += step_x[direction]
                    y += step_y[direction]
                    first = position[y, x]
                    if first < 0:
                        continue
                    area = 0
                    before = direction
                    for i in range(first, length):
                        px, py, d = path_x[i], path_y[i], path_d[i]
                        area += px * step_y[d] - py * step_x[d]
                        position[py, px] = -1
                        if d != before:
                            corners[filled, 0], corners[filled, 1] = px, py
                            filled += 1
                        before = d
                    # The pixel on the right of the loop's last edge, which points to (x, y).
                    if direction == 0:
                        owner = pieces[y, x - 1]
                    elif direction == 1:
                        owner = pieces[y - 1, x - 1]
                    elif direction == 2:
                        owner = pieces[y - 1, x]
                    else:
                        owner = pieces[y, x]
                    ends[rings], areas[rings], owners[rings] = filled, area, owner
                    rings += 1
                    length = first
                    direction = path_d[first - 1] if first > 0 else -1
    return corners[:filled], ends[:rings], areas[:rings], owners[:rings]
