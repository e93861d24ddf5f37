"""The preprocessing of `dinocell.data.preprocess`, region by region, for images too large to hold in floats.

The statistics of the whole image (contrast limits, CLAHE tables, mean and deviation) are gathered in passes over
blocks; a region then comes out as it would be cut from the preprocessed whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.data.jit import compiled
from dinocell.data.preprocess import BINS, PreprocessConfig, percentiles

STEP = 1024

Float32 = NDArray[np.float32]
Slices = tuple[slice, slice]


class StreamedInput:
    """z of any region of a gray image.

    Args:
        gray: (H, W) of any number type, in memory or memory-mapped.
        config: preprocessing of the model.
    """

    def __init__(self, gray: NDArray[Any], config: PreprocessConfig) -> None:
        self.gray, self.config = gray, config
        self.size: tuple[int, int] = (gray.shape[0], gray.shape[1])
        low, high = percentiles(gray, config.percentile_low, config.percentile_high)
        if not high > low:
            low, high = percentiles(gray, 0, 100)
        self.low, self.high = low, high
        self.constant = not high > low
        if self.constant:
            return
        self.tile = (-(-self.size[0] // config.clahe_tiles), -(-self.size[1] // config.clahe_tiles))
        self.tables = self._tables() if config.clahe else None
        self.mean, self.deviation = self._moments()

    def region(self, rows: slice, columns: slice) -> Float32:
        """z (h, w) float32 of a region; equal to that cut from `preprocess(gray)` up to rounding."""
        if self.constant:
            return np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        values = self._mapped(rows, columns)
        values -= np.float32(self.mean)
        values *= np.float32(1 / max(self.deviation, 1e-12))
        return values

    def _unit(self, block: NDArray[Any]) -> Float32:
        """Pixels stretched to [0, 1] between the contrast limits."""
        wide = block.dtype.kind in "bui" and block.dtype.itemsize > 2
        if wide:
            values = (block.astype(np.float64) - self.low).astype(np.float32)
        else:
            values = block.astype(np.float32) - np.float32(self.low)
        values *= np.float32(1 / (self.high - self.low))
        np.clip(values, 0, 1, out=values)
        return np.nan_to_num(values, copy=False)

    def _mapped(self, rows: slice, columns: slice) -> Float32:
        unit = self._unit(self.gray[rows, columns])
        if self.tables is None:
            return unit
        mapped: Float32 = _apply_tables(unit, self.tables, *self.tile, rows.start, columns.start)
        return mapped

    def _blocks(self) -> Iterator[Slices]:
        height, width = self.size
        for y in range(0, height, STEP):
            for x in range(0, width, STEP):
                yield slice(y, min(y + STEP, height)), slice(x, min(x + STEP, width))

    def _moments(self) -> tuple[float, float]:
        total = squares = 0.0
        for rows, columns in self._blocks():
            values = self._mapped(rows, columns).astype(np.float64) - 0.5
            total += values.sum()
            squares += np.square(values).sum()
        count = self.size[0] * self.size[1]
        return total / count + 0.5, float(np.sqrt(max(squares / count - (total / count) ** 2, 0)))

    def _tables(self) -> Float32:
        """Mapping of each tile, (tiles, tiles, 256), as `dinocell.data.preprocess.clahe` builds them."""
        tiles, (tile_h, tile_w) = self.config.clahe_tiles, self.tile
        mode: Any = "reflect" if min(self.size) > 1 else "edge"
        ys, xs = (
            np.pad(np.arange(length), (0, side * tiles - length), mode=mode)
            for length, side in zip(self.size, self.tile, strict=True)
        )
        limit = max(int(self.config.clahe_clip * tile_h * tile_w / BINS), 1)
        tables = np.empty((tiles, tiles, BINS), np.float32)
        for row in range(tiles):
            for column in range(tiles):
                counts = np.zeros(BINS, np.int64)
                across = xs[column * tile_w : (column + 1) * tile_w]
                for start in range(row * tile_h, (row + 1) * tile_h, STEP):
                    down = ys[start : min(start + STEP, (row + 1) * tile_h)]
                    unit = self._unit(self.gray[np.ix_(down, across)])
                    bins = np.rint(unit * np.float32(BINS - 1)).astype(np.uint8)
                    counts += np.bincount(bins.ravel(), minlength=BINS)
                tables[row, column] = _table(counts, limit, tile_h * tile_w)
        return tables


def _table(counts: NDArray[np.int64], limit: int, pixels: int) -> Float32:
    """Cumulative histogram after clipping at `limit` and sharing the excess evenly."""
    excess = int(np.maximum(counts - limit, 0).sum())
    counts = np.minimum(counts, limit) + excess // BINS
    residual = excess % BINS
    if residual:
        step = max(BINS // residual, 1)
        counts[: residual * step : step] += 1
    return (np.cumsum(counts) / pixels).astype(np.float32)


@compiled
def _apply_tables(unit: Float32, tables: Float32, tile_h: int, tile_w: int, top: int, left: int) -> Float32:
    """Interpolate between the tables of the four nearest tiles; the region's corner lies at (top, left)."""
    rows, columns, bins = tables.shape
    out = np.empty_like(unit)
    for y in range(unit.shape[0]):
        ty = (y + top) / tile_h - 0.5
        y0 = int(np.floor(ty))
        fy = np.float32(ty - y0)
        y1 = min(y0 + 1, rows - 1)
        y0 = max(y0, 0)
        for x in range(unit.shape[1]):
            tx = (x + left) / tile_w - 0.5
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
