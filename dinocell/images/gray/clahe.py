"""Contrast-limited adaptive histogram equalisation, of a whole plane or region by region, in floats."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled

BINS = 256


def apply_clahe(unit: npt.NDArray[np.float32], clip: float, tiles: int) -> npt.NDArray[np.float32]:
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
    tables = np.empty((tiles, tiles, BINS), dtype=np.float32)
    for row in range(tiles):
        for column in range(tiles):
            tile = padded[row * tile_h : (row + 1) * tile_h, column * tile_w : (column + 1) * tile_w]
            tables[row, column] = tile_table(np.bincount(tile.ravel(), minlength=BINS), clip, tile.size)
    mapped: npt.NDArray[np.float32] = apply_tables(unit, tables, tile_h, tile_w, 0, 0)
    return mapped


def tile_table(counts: npt.NDArray[np.int64], clip: float, pixels: int) -> npt.NDArray[np.float32]:
    """One tile's mapping (256,): its cumulative histogram after clipping and sharing the excess evenly."""
    limit = max(int(clip * pixels / BINS), 1)
    excess = int(np.maximum(counts - limit, 0).sum())
    counts = np.minimum(counts, limit) + excess // BINS
    residual = excess % BINS
    if residual:
        step = max(BINS // residual, 1)
        counts[: residual * step : step] += 1
    return (np.cumsum(counts) / pixels).astype(np.float32)


@compiled()
def apply_tables(
    unit: npt.NDArray[np.float32], tables: npt.NDArray[np.float32], tile_h: int, tile_w: int, top: int, left: int
) -> npt.NDArray[np.float32]:
    """Map a region (h, w) in [0, 1], whose corner is at (top, left), by the tables of the four nearest tiles."""
    height, width = unit.shape
    rows, columns, bins = tables.shape
    out = np.empty((height, width), dtype=np.float32)
    for y in range(height):
        ty = (y + top) / tile_h - 0.5
        y0 = int(np.floor(ty))
        fy = np.float32(ty - y0)
        y1 = min(y0 + 1, rows - 1)
        y0 = max(y0, 0)
        for x in range(width):
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
