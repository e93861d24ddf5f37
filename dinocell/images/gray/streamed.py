"""The preprocessing of `dinocell.images.gray.contrast`, region by region, for images too large for floats in memory.

The statistics of the whole image (contrast limits, CLAHE tables, mean and deviation) are gathered in passes over
blocks; a region then comes out as it would be cut from the preprocessed whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.arrays import Float32
from dinocell.images.gray.bands import histogram_by_bands
from dinocell.images.gray.clahe import BINS, apply_tables, tile_table
from dinocell.images.gray.contrast import limits, to_unit
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.images.mapped import release

STEP = 1024

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
        counts = histogram_by_bands(gray) if gray.dtype in (np.uint8, np.uint16) else None
        self.low, self.high = limits(gray, config.percentile_low, config.percentile_high, counts)
        self.constant = not self.high > self.low
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
        release(self.gray)
        return values

    def _unit(self, block: NDArray[Any]) -> Float32:
        return to_unit(np.ascontiguousarray(block), self.low, self.high)

    def _mapped(self, rows: slice, columns: slice) -> Float32:
        unit = self._unit(self.gray[rows, columns])
        if self.tables is None:
            return unit
        mapped: Float32 = apply_tables(unit, self.tables, *self.tile, rows.start, columns.start)
        return mapped

    def _blocks(self) -> Iterator[Slices]:
        height, width = self.size
        for y in range(0, height, STEP):
            for x in range(0, width, STEP):
                yield slice(y, min(y + STEP, height)), slice(x, min(x + STEP, width))
            release(self.gray)

    def _moments(self) -> tuple[float, float]:
        total = squares = 0.0
        for rows, columns in self._blocks():
            values = self._mapped(rows, columns).astype(np.float64) - 0.5
            total += values.sum()
            squares += np.square(values).sum()
        count = self.size[0] * self.size[1]
        return total / count + 0.5, float(np.sqrt(max(squares / count - (total / count) ** 2, 0)))

    def _tables(self) -> Float32:
        """Mapping of each tile, (tiles, tiles, 256), as `dinocell.images.gray.clahe.apply_clahe` builds them."""
        tiles, (tile_h, tile_w) = self.config.clahe_tiles, self.tile
        mode: Any = "reflect" if min(self.size) > 1 else "edge"
        ys, xs = (
            np.pad(np.arange(length), (0, side * tiles - length), mode=mode)
            for length, side in zip(self.size, self.tile, strict=True)
        )
        tables = np.empty((tiles, tiles, BINS), np.float32)
        for row in range(tiles):
            for column in range(tiles):
                counts = np.zeros(BINS, np.int64)
                across = xs[column * tile_w : (column + 1) * tile_w]
                for start in range(row * tile_h, (row + 1) * tile_h, STEP):
                    down = ys[start : min(start + STEP, (row + 1) * tile_h)]
                    unit = self._unit(self._pixels(down, across))
                    bins = np.rint(unit * np.float32(BINS - 1)).astype(np.uint8)
                    counts += np.bincount(bins.ravel(), minlength=BINS)
                    release(self.gray)
                tables[row, column] = tile_table(counts, self.config.clahe_clip, tile_h * tile_w)
        return tables

    def _pixels(self, down: NDArray[np.int64], across: NDArray[np.int64]) -> NDArray[Any]:
        """Pixels of the rows `down` and columns `across`; most often a plain rectangle, which is read far faster."""
        if all(len(line) == abs(int(line[-1]) - int(line[0])) + 1 and line[0] <= line[-1] for line in (down, across)):
            return self.gray[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        return self.gray[np.ix_(down, across)]
