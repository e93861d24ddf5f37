"""The one preprocessing of stage 2, used by training and inference alike: gray → CLAHE → zero mean, unit variance.

Paper §3.3; spec "Preprocessing". Everything works on the whole image. Contrast limits are taken from percentiles
whatever the dtype, so the same picture stored as 8 bit, 16 bit or float is preprocessed to the same values, and
nothing is rounded to 8 bit on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dinocell import log
from dinocell.config import field
from dinocell.data.jit import compiled
from dinocell.errors import ConfigError, DataError

BINS = 256
MAX_SORTED = 2**24
"""Planes of floats or wide integers with more pixels than this give their percentiles from every k-th row."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image becomes the network's input."""

    clahe: bool = field(True, "contrast-limited adaptive histogram equalisation of the whole image (paper)")
    clahe_clip: float = field(1.0, "CLAHE clip limit", "× the mean bin count")
    clahe_tiles: int = field(8, "CLAHE tiles a side")
    percentile_low: float = field(0.1, "percentile that becomes black before CLAHE", "%")
    percentile_high: float = field(99.9, "percentile that becomes white before CLAHE", "%")

    def __post_init__(self) -> None:
        if not 0 <= self.percentile_low < self.percentile_high <= 100:
            raise ConfigError(
                f"percentile_low: needs 0 ≤ low < high ≤ 100, got {self.percentile_low} and {self.percentile_high}"
            )
        if self.clahe_clip <= 0:
            raise ConfigError(f"clahe_clip: must be above 0, got {self.clahe_clip}")
        if self.clahe_tiles < 1:
            raise ConfigError(f"clahe_tiles: must be at least 1, got {self.clahe_tiles}")


def preprocess(gray: npt.NDArray[Any], config: PreprocessConfig | None = None) -> npt.NDArray[np.float32]:
    """Whole gray image (H, W) of any dtype → float32 (H, W) with zero mean and unit variance.

    NaN and infinities take the low end. A constant image comes out as zeros, with a warning.

    Raises:
        DataError: not a plane, or empty.
    """
    config = config or PreprocessConfig()
    if gray.ndim != 2 or gray.size == 0:
        raise DataError(f"preprocess needs a gray image (H, W), got shape {gray.shape}; to_gray() makes one")
    unit = stretch(gray, config.percentile_low, config.percentile_high)
    if unit is None:
        log.warning(f"constant image of {gray.shape[0]}×{gray.shape[1]} px: nothing to normalise, zeros instead")
        return np.zeros(gray.shape, dtype=np.float32)
    if config.clahe:
        unit = clahe(unit, config.clahe_clip, config.clahe_tiles)
    mean, deviation = float(unit.mean(dtype=np.float64)), float(unit.std(dtype=np.float64))
    unit -= np.float32(mean)
    unit *= np.float32(1 / max(deviation, 1e-12))
    return unit


def stretch(gray: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float32] | None:
    """Linear map of the percentiles `low` … `high` (%) to [0, 1], clipped, float32; None for a constant image."""
    bottom, top = limits(gray, low, high)
    return _to_unit(gray, bottom, top) if top > bottom else None


def _to_unit(gray: npt.NDArray[Any], bottom: float, top: float) -> npt.NDArray[np.float32]:
    if gray.dtype in (np.uint8, np.uint16) and gray.size > np.iinfo(gray.dtype).max:
        levels = np.arange(np.iinfo(gray.dtype).max + 1, dtype=np.int32)  # fewer than there are pixels
        return np.asarray(_look_up(_to_unit(levels.astype(np.float32), bottom, top), gray))
    if gray.dtype.kind in "bui" and gray.dtype.itemsize > 2:
        values = (gray.astype(np.float64) - bottom).astype(np.float32)  # float32 alone would round 32-bit counts
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # infinite or absurdly large values, which are clipped
            values = gray.astype(np.float32) - np.float32(bottom)
    values *= np.float32(1 / (top - bottom))
    np.clip(values, 0, 1, out=values)
    return np.nan_to_num(values, copy=False)


def to_uint8(gray: npt.NDArray[Any], low: float = 0.1, high: float = 99.9) -> npt.NDArray[np.uint8]:
    """Percentile stretch of a plane (H, W) to 8 bit, for curation and overlays; a constant image becomes zeros."""
    return scale_to_uint8(gray, *limits(gray, low, high))


def scale_to_uint8(gray: npt.NDArray[Any], bottom: float, top: float) -> npt.NDArray[np.uint8]:
    """Plane (H, W) with the values `bottom` … `top` mapped to 0 … 255, rounded and clipped; NaN becomes 0."""
    if not top > bottom:
        return np.zeros(gray.shape, dtype=np.uint8)
    if gray.dtype in (np.uint8, np.uint16):
        return np.asarray(_look_up(_byte_table(np.iinfo(gray.dtype).max + 1, bottom, 255 / (top - bottom)), gray))
    unit = _to_unit(gray, bottom, top)
    unit *= np.float32(255)
    unit += np.float32(0.5)
    return unit.astype(np.uint8)


@compiled
def _byte_table(levels: int, bottom: float, scale: float) -> npt.NDArray[np.uint8]:
    table = np.empty(levels, dtype=np.uint8)
    for level in range(levels):
        table[level] = np.uint8(min(max((level - bottom) * scale + 0.5, 0.0), 255.5))
    return table


@compiled
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
    """Values that become black and white: percentiles, or the extremes when sparse content lies outside them.

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


@compiled
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


@compiled
def _count(gray: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
    """cv2.calcHist is no faster, and counts in float32."""
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            counts[gray[y, x]] += 1


def clahe(unit: npt.NDArray[np.float32], clip: float, tiles: int) -> npt.NDArray[np.float32]:
    """CLAHE of a plane (H, W) in [0, 1] without rounding the values (Zuiderveld 1994; tables as cv2.createCLAHE).

    Each of tiles² tables comes from 256 bins; pixels are mapped by linear interpolation between bins and between
    the four nearest tiles. On values k/255 it equals cv2 before cv2's last rounding.
    """
    height, width = unit.shape
    tile_h, tile_w = -(-height // tiles), -(-width // tiles)
    bins = np.rint(unit * np.float32(BINS - 1)).astype(np.uint8)
    # Reflected to whole tiles. cv2.createCLAHE adds a whole extra tile width where only the other side needs padding.
    below, right = tile_h * tiles - height, tile_w * tiles - width
    padded = cv2.copyMakeBorder(bins, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    limit = max(int(clip * tile_h * tile_w / BINS), 1)
    tables = np.empty((tiles, tiles, BINS), dtype=np.float32)
    for row in range(tiles):
        for column in range(tiles):
            tile = padded[row * tile_h : (row + 1) * tile_h, column * tile_w : (column + 1) * tile_w]
            tables[row, column] = _table(np.bincount(tile.ravel(), minlength=BINS), limit, tile.size)
    mapped: npt.NDArray[np.float32] = _apply_tables(unit, tables, tile_h, tile_w)
    return mapped


def _table(counts: npt.NDArray[np.int64], limit: int, pixels: int) -> npt.NDArray[np.float32]:
    """One tile's mapping: cumulative histogram after clipping at `limit` and sharing the excess evenly."""
    excess = int(np.maximum(counts - limit, 0).sum())
    counts = np.minimum(counts, limit) + excess // BINS
    residual = excess % BINS
    if residual:
        step = max(BINS // residual, 1)
        counts[: residual * step : step] += 1
    return (np.cumsum(counts) / pixels).astype(np.float32)


@compiled
def _apply_tables(
    unit: npt.NDArray[np.float32], tables: npt.NDArray[np.float32], tile_h: int, tile_w: int
) -> npt.NDArray[np.float32]:
    height, width = unit.shape
    rows, columns, bins = tables.shape
    out = np.empty((height, width), dtype=np.float32)
    for y in range(height):
        ty = y / tile_h - 0.5
        y0 = int(np.floor(ty))
        fy = np.float32(ty - y0)
        y1 = min(y0 + 1, rows - 1)
        y0 = max(y0, 0)
        for x in range(width):
            tx = x / tile_w - 0.5
            x0 = int(np.floor(tx))
            fx = np.float32(tx - x0)
            x1 = min(x0 + 1, columns - 1)
            x0 = max(x0, 0)
            value = unit[y, x] * np.float32(bins - 1)
            k = min(int(value), bins - 2)
            f = value - np.float32(k)
            a = tables[y0, x0, k] + f * (tables[y0, x0, k + 1] - tables[y0, x0, k])
            b = tables[y0, x1, k] + f * (tables[y0, x1, k + 1] - tables[y0, x1, k])
            c = tables[y1, x0, k] + f * (tables[y1, x0, k + 1] - tables[y1, x0, k])
            d = tables[y1, x1, k] + f * (tables[y1, x1, k + 1] - tables[y1, x1, k])
            above = a + fx * (b - a)
            below = c + fx * (d - c)
            out[y, x] = above + fy * (below - above)
    return out
