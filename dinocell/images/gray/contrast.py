"""Contrast limits from percentiles, exact for every dtype, and planes stretched between them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled

LOW_PERCENTILE, HIGH_PERCENTILE = 0.1, 99.9
"""Percentiles (%) that become black and white, unless a recipe says otherwise."""
MAX_SORTED = 2**24
"""Planes of floats or wide integers with more pixels than this give their percentiles from every k-th row."""


def stretch(gray: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float32] | None:
    """Linear map of the percentiles `low` … `high` (%) to [0, 1], clipped, float32; None for a constant image."""
    bottom, top = limits(gray, low, high)
    return to_unit(gray, bottom, top) if top > bottom else None


def to_unit(gray: npt.NDArray[Any], bottom: float, top: float) -> npt.NDArray[np.float32]:
    """Linear map of the values `bottom` … `top` to [0, 1], clipped; NaN becomes 0."""
    if gray.dtype in (np.uint8, np.uint16) and gray.size > np.iinfo(gray.dtype).max:
        levels = np.arange(np.iinfo(gray.dtype).max + 1, dtype=np.int32)  # fewer than there are pixels
        return np.asarray(_look_up(to_unit(levels.astype(np.float32), bottom, top), gray))
    if gray.dtype.kind in "bui" and gray.dtype.itemsize > 2:
        values = (gray.astype(np.float64) - bottom).astype(np.float32)  # float32 alone would round 32-bit counts
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # infinite or absurdly large values, which are clipped
            values = gray.astype(np.float32) - np.float32(bottom)
    values *= np.float32(1 / (top - bottom))
    np.clip(values, 0, 1, out=values)
    return np.nan_to_num(values, copy=False)


def to_uint8(
    gray: npt.NDArray[Any], low: float = LOW_PERCENTILE, high: float = HIGH_PERCENTILE
) -> npt.NDArray[np.uint8]:
    """Percentile stretch of a plane (H, W) to 8 bit, for curation and overlays; a constant image becomes zeros."""
    return scale_to_uint8(gray, *limits(gray, low, high))


def scale_to_uint8(gray: npt.NDArray[Any], bottom: float, top: float) -> npt.NDArray[np.uint8]:
    """Plane (H, W) with the values `bottom` … `top` mapped to 0 … 255, rounded and clipped; NaN becomes 0."""
    if not top > bottom:
        return np.zeros(gray.shape, dtype=np.uint8)
    if gray.dtype in (np.uint8, np.uint16):
        table = _byte_table(np.iinfo(gray.dtype).max + 1, bottom, 255 / (top - bottom))
        return np.asarray(cv2.LUT(gray, table) if gray.dtype == np.uint8 and gray.size else _look_up(table, gray))
    unit = to_unit(gray, bottom, top)
    unit *= np.float32(255)
    unit += np.float32(0.5)
    return unit.astype(np.uint8)


@compiled()
def _byte_table(levels: int, bottom: float, scale: float) -> npt.NDArray[np.uint8]:
    table = np.empty(levels, dtype=np.uint8)
    for level in range(levels):
        table[level] = np.uint8(min(max((level - bottom) * scale + 0.5, 0.0), 255.5))
    return table


@compiled()
def _look_up(table: npt.NDArray[Any], gray: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """table[gray] without numpy's widening of the indices to 64 bit."""
    out = np.empty(gray.shape, dtype=table.dtype)
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            out[y, x] = table[gray[y, x]]
    return out


def limits(
    gray: npt.NDArray[Any], low: float, high: float, counts: npt.NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Values that become black and white: percentiles, or the extremes when sparse content is outside them.

    `counts` is the plane's `histogram`, if the caller has it.
    """
    if counts is None and gray.dtype in (np.uint8, np.uint16):
        counts = histogram(gray)
    bottom, top = percentiles(gray, low, high, counts)
    return (bottom, top) if top > bottom else percentiles(gray, 0, 100, counts)


def percentiles(
    gray: npt.NDArray[Any], low: float, high: float, counts: npt.NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Values at ranks ⌊q·(n−1)⌋ of the finite pixels for two percentages; (0, 0) when there are none."""
    if gray.dtype in (np.uint8, np.uint16):
        counts = histogram(gray) if counts is None else counts
        bottom, top = (float(_at_rank(counts, int(q / 100 * (gray.size - 1)))) for q in (low, high))
        return bottom, top
    if gray.size > MAX_SORTED:
        gray = gray[:: -(-gray.size // MAX_SORTED)]
    values = gray[np.isfinite(gray)] if gray.dtype.kind == "f" else gray.ravel()
    if values.size == 0:
        return 0.0, 0.0
    ranks = [int(q / 100 * (values.size - 1)) for q in (low, high)]
    ordered = np.partition(values, ranks)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]])


@compiled()
def _at_rank(counts: npt.NDArray[np.int64], rank: int) -> int:
    """Value of the pixel at a rank (from 0) of all pixels in order of value."""
    below = 0
    for value in range(counts.size):
        below += counts[value]
        if below > rank:
            return value
    return counts.size - 1


def histogram(gray: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Exact counts of every value of a uint8 or uint16 plane (H, W): int64 [256], or [brightest value + 1]."""
    levels = 256 if gray.dtype == np.uint8 else int(gray.max(initial=0)) + 1
    counts = np.zeros(levels, dtype=np.int64)
    _count(gray, counts)
    return counts


@compiled()
def _count(gray: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
    """Count values; cv2.calcHist is not faster, and counts in float32.

    Neighbours have separate tables: a pixel of the same value would have to wait for the one before.
    """
    first, second, third, fourth = counts, np.zeros_like(counts), np.zeros_like(counts), np.zeros_like(counts)
    columns = gray.shape[1]
    whole = columns - columns % 4
    for y in range(gray.shape[0]):
        row = gray[y]
        for x in range(0, whole, 4):
            first[row[x]] += 1
            second[row[x + 1]] += 1
            third[row[x + 2]] += 1
            fourth[row[x + 3]] += 1
        for x in range(whole, columns):
            first[row[x]] += 1
    for value in range(counts.size):
        counts[value] += second[value] + third[value] + fourth[value]
