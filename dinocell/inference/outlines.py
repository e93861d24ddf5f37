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
        numbers, inverse = np.unique(labels, return_inverse=True)
        labels = inverse.reshape(labels.shape) + (0 if numbers[0] == 0 else 1)
        numbers = numbers[numbers != 0]
    boxes = ndimage.find_objects(labels.astype(np.int32, copy=False))
    for number, box in enumerate(boxes, start=1):
        if box is not None:
            label = number if numbers is None else int(numbers[number - 1])
            yield label, mask_polygons(labels[box] == number, box[1].start, box[0].start)


def mask_polygons(mask: NDArray[np.bool_], x0: int = 0, y0: int = 0) -> list[Polygon]:
    """Polygons of the True pixels of (h, w) whose upper left corner lies at (x0, y0); largest first."""
    exteriors: list[tuple[int, Ring]] = []
    holes: list[Ring] = []
    for ring in _rings(mask):
        area = _signed_area(ring)
        if area > 0:
            exteriors.append((area, ring))
        else:
            holes.append(ring)
    exteriors.sort(key=lambda entry: -entry[0])
    shift = np.array([x0, y0], np.int32)
    owners = [_owner(hole, [ring for _, ring in exteriors]) for hole in holes]
    return [
        Polygon(ring + shift, tuple(hole + shift for hole, owner in zip(holes, owners, strict=True) if owner == index))
        for index, (_, ring) in enumerate(exteriors)
    ]


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner → corners that follow it, walking every pixel edge with the cell on the right (clockwise on screen)."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    sides = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),  # top edge, to the right
        (inside & ~padded[1:-1, 2:], (1, 0), (1, 1)),  # right edge, down
        (inside & ~padded[2:, 1:-1], (1, 1), (0, 1)),  # bottom edge, to the left
        (inside & ~padded[1:-1, :-2], (0, 1), (0, 0)),  # left edge, up
    )
    for open_side, (ax, ay), (bx, by) in sides:
        ys, xs = np.nonzero(open_side)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            following.setdefault((x + ax, y + ay), []).append((x + bx, y + by))
    return following


def _rings(mask: NDArray[np.bool_]) -> Iterator[Ring]:
    """Closed simple rings of corners; positive area (x right, y down) for outer borders, negative for holes."""
    following = _edges(mask)
    while following:
        start = next(iter(following))
        path = [start]
        position = {start: 0}
        while path:
            here = path[-1]
            targets = following.get(here)
            if not targets:
                break
            target = targets.pop(_turn(path, targets))
            if not targets:
                del following[here]
            if target in position:  # back at a corner of this walk: cut the loop off, so that no ring touches itself
                first = position[target]
                loop = path[first:]
                for corner in loop[1:]:
                    del position[corner]
                del path[first + 1 :]
                yield _corners_only(np.array(loop, np.int32))
            else:
                position[target] = len(path)
                path.append(target)


def _turn(path: list[tuple[int, int]], targets: list[tuple[int, int]]) -> int:
    """Which edge to take where two pixels touch by a corner: the right turn, which stays on the same pixel."""
    if len(targets) == 1 or len(path) < 2:
        return 0
    (px, py), (x, y) = path[-2], path[-1]
    right = (x - (y - py), y + (x - px))
    return targets.index(right) if right in targets else 0


def _corners_only(ring: Ring) -> Ring:
    """The ring without the points that lie on a straight side."""
    back, ahead = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[(back != ahead).any(axis=1)]


def _signed_area(ring: Ring) -> int:
    x, y = ring.astype(np.int64).T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) // 2


def _owner(hole: Ring, exteriors: list[Ring]) -> int:
    """Index of the smallest exterior around the hole."""
    if len(exteriors) == 1:
        return 0
    # A point just inside the hole's first edge: no ring passes through the middle of a pixel.
    (ax, ay), (bx, by) = hole[0].astype(float), hole[1].astype(float)
    direction = np.array([np.sign(bx - ax), np.sign(by - ay)])
    point = np.array([ax, ay]) + 0.5 * direction + 0.5 * np.array([direction[1], -direction[0]])
    around = [index for index, ring in enumerate(exteriors) if _contains(ring, point)]
    return around[-1] if around else 0


def _contains(ring: Ring, point: NDArray[np.float64]) -> bool:
    x, y = ring.astype(np.float64).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    vertical = x == next_x
    crosses = vertical & ((y > point[1]) != (next_y > point[1])) & (x > point[0])
    return bool(crosses.sum() % 2)
