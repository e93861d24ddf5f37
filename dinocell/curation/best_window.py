"""The window with most detail: highest variance of the Laplacian over every position, exactly (paper §3.1.1).

The variance of a window follows from two sums, of L and of L². Instead of two integral images of the whole image
the scan keeps one running sum per column, so that memory is a few rows whatever the image's size. Sums of 8 and
16 bit images are exact integers; those of other dtypes run in doubled float64, whose rounding error (2⁻¹⁰⁶ of the
largest term ever added) cancels on subtraction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled
from dinocell.images.gray.channels import to_gray

Array = npt.NDArray[Any]
Window = tuple[int, int, float]
"""y, x (px, top left) and Laplacian variance (squared gray levels)."""


def best_crop(image: Array, size: int) -> Window:
    """The size×size window of highest Laplacian variance over all positions.

    The Laplacian is cv2.Laplacian (ksize 1, reflected border) of the whole float image. Sides shorter than `size`
    are taken whole. The first in reading order wins a tie. NaN and infinities count as 0.

    Args:
        image: (H, W), or colour or channels, of which `to_gray` is taken.
        size: side in px.

    Returns:
        (y, x, laplacian_variance) of the window.
    """
    return best_crops(image, size, 1, 0.0)[0]


def best_crops(image: Array, size: int, count: int, max_overlap: float) -> list[Window]:
    """Up to `count` windows, best first, each overlapping every better one by at most `max_overlap` of its area."""
    gray = image if image.ndim == 2 else to_gray(image)
    if gray.size == 0 or size < 1:
        raise ValueError(f"best_crops needs pixels and size ≥ 1, got {gray.shape} and {size}")
    height, width = min(size, gray.shape[0]), min(size, gray.shape[1])
    shared = max_overlap * height * width
    taken: list[tuple[int, int]] = []
    found: list[Window] = []
    for _ in range(count):
        corners = np.array(taken, dtype=np.int64).reshape(-1, 2)
        if gray.dtype in (np.uint8, np.uint16):
            y, x, variance = _scan_integers(gray, height, width, corners, shared)
        else:
            y, x, variance = _scan_floats(gray, height, width, corners, shared)
        if y < 0:
            break
        taken.append((int(y), int(x)))
        found.append((int(y), int(x), float(variance)))
    return found


@compiled()
def _allowed(y: int, x: int, height: int, width: int, taken: npt.NDArray[np.int64], shared: float) -> bool:
    for k in range(taken.shape[0]):
        rows = height - abs(y - taken[k, 0])
        columns = width - abs(x - taken[k, 1])
        if rows > 0 and columns > 0 and rows * columns > shared:
            return False
    return True


@compiled()
def _add_integer_row(image: Array, y: int, sign: int, sums: Array, squares: Array) -> None:
    """sums[x] += sign·L(y, x), squares[x] += sign·L(y, x)² along one row; int64."""
    rows, columns = image.shape
    above = image[abs(y - 1) if rows > 1 else 0]
    below = image[y + 1 if y + 1 < rows else max(rows - 2, 0)]
    here = image[y]
    last = columns - 1
    _add_integer(above[0], below[0], here[min(1, last)], here[min(1, last)], here[0], 0, sign, sums, squares)
    for x in range(last - 1):
        _add_integer(above[x + 1], below[x + 1], here[x], here[x + 2], here[x + 1], x + 1, sign, sums, squares)
    if last > 0:
        _add_integer(above[last], below[last], here[last - 1], here[last - 1], here[last], last, sign, sums, squares)


@compiled()
def _add_integer(
    above: int, below: int, left: int, right: int, here: int, x: int, sign: int, sums: Array, squares: Array
) -> None:
    # |L| < 2¹⁹ fits in 32 bits, which lets the compiler use vector instructions; its square does not
    value = np.int32(np.int32(above) + np.int32(below) + np.int32(left) + np.int32(right) - 4 * np.int32(here))
    sums[x] += sign * value
    squares[x] += sign * (np.int64(value) * np.int64(value))


@compiled()
def _scan_integers(
    image: Array, height: int, width: int, taken: npt.NDArray[np.int64], shared: float
) -> tuple[int, int, float]:
    """Best allowed window of a uint8 or uint16 image; y = −1 when none is allowed."""
    rows, columns = image.shape
    sums = np.zeros(columns, dtype=np.int64)
    squares = np.zeros(columns, dtype=np.int64)
    area = height * width
    best, best_y, best_x = -1.0, -1, -1
    for row in range(rows):
        _add_integer_row(image, row, 1, sums, squares)
        if row >= height:
            _add_integer_row(image, row - height, -1, sums, squares)
        y = row - height + 1
        if y < 0:
            continue
        total = sums[:width].sum()
        square = squares[:width].sum()
        for x in range(columns - width + 1):
            if x > 0:
                total += sums[x + width - 1] - sums[x - 1]
                square += squares[x + width - 1] - squares[x - 1]
            mean = total / area
            variance = square / area - mean * mean
            if variance > best and _allowed(y, x, height, width, taken, shared):
                best, best_y, best_x = variance, y, x
    return best_y, best_x, best


@compiled()
def _accumulate(sums: Array, x: int, value: float) -> None:
    """sums[x] += value in doubled precision (Knuth's two-sum); sums is (columns, 2): value and remainder."""
    high = sums[x, 0] + value
    part = high - sums[x, 0]
    sums[x, 1] += (sums[x, 0] - (high - part)) + (value - part)
    sums[x, 0] = high


@compiled()
def _at(image: Array, y: int, x: int) -> float:
    value = np.float64(image[y, x])
    return value if np.isfinite(value) else 0.0


@compiled()
def _add_float_row(image: Array, y: int, sign: int, sums: Array, squares: Array) -> None:
    rows, columns = image.shape
    above = abs(y - 1) if rows > 1 else 0
    below = y + 1 if y + 1 < rows else max(rows - 2, 0)
    for x in range(columns):
        left = x - 1 if x > 0 else min(1, columns - 1)
        right = x + 1 if x + 1 < columns else max(columns - 2, 0)
        value = _at(image, above, x) + _at(image, below, x) + _at(image, y, left) + _at(image, y, right)
        value -= 4 * _at(image, y, x)
        _accumulate(sums, x, sign * value)
        _accumulate(squares, x, sign * value * value)


@compiled()
def _scan_floats(
    image: Array, height: int, width: int, taken: npt.NDArray[np.int64], shared: float
) -> tuple[int, int, float]:
    """As `_scan_integers`, for any other real dtype."""
    rows, columns = image.shape
    sums = np.zeros((columns, 2))
    squares = np.zeros((columns, 2))
    area = height * width
    best, best_y, best_x = -1.0, -1, -1
    for row in range(rows):
        _add_float_row(image, row, 1, sums, squares)
        if row >= height:
            _add_float_row(image, row - height, -1, sums, squares)
        y = row - height + 1
        if y < 0:
            continue
        total = np.zeros((1, 2))
        square = np.zeros((1, 2))
        for x in range(columns):
            _accumulate(total, 0, sums[x, 0] + sums[x, 1])
            _accumulate(square, 0, squares[x, 0] + squares[x, 1])
            if x >= width:
                _accumulate(total, 0, -(sums[x - width, 0] + sums[x - width, 1]))
                _accumulate(square, 0, -(squares[x - width, 0] + squares[x - width, 1]))
            if x < width - 1:
                continue
            mean = (total[0, 0] + total[0, 1]) / area
            variance = max((square[0, 0] + square[0, 1]) / area - mean * mean, 0.0)
            if variance > best and _allowed(y, x - width + 1, height, width, taken, shared):
                best, best_y, best_x = variance, y, x - width + 1
    return best_y, best_x, best
