"""Embeddings of cells: the mean of the backbone's patch tokens over the pixels of each cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dinocell.core.arrays import Float32
from dinocell.labels.cells import renumber_table
from dinocell.predict.placement import Placement
from dinocell.predict.runner import Runner
from dinocell.predict.windows import Window, taper

BAND_ROWS = 2048


def cell_embeddings(
    runner: Runner, labels: NDArray[Any], region: Callable[[Window], Float32], place: Placement
) -> Float32:
    """One vector per cell: at each pixel the tokens of its windows, blended as the maps are, then their mean.

    The backbone runs once more, over the windows that contain cells; a token counts by its share of the cell's pixels.

    Args:
        labels: (H, W) integers, 0 = background.
        region: the frame (h, w) in a window.
        place: of the image in that frame.

    Returns:
        (n, D) float32, in the order of the labels present.

    Raises:
        ConfigError: the network has no patch tokens.
    """
    lookup, areas = _ranks(labels)
    sums = np.zeros((len(areas), runner.backboned.backbone.embed_dim), np.float32)
    lines = [_frame_lines(length, seen) for length, seen in zip(labels.shape, place.shown, strict=True)]
    tiles = [at for at in place.windows(runner.overlap) if labels[_slices(lines, at)].any()]
    for at, tokens in runner.tokens(region, tiles):
        ranks = lookup[labels[_slices(lines, at)]]
        _add(sums, tokens, ranks, lines, at, taper(at, place.frame, runner.window, runner.overlap))
    return np.asarray(sums / areas[:, None], np.float32)


def _ranks(labels: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """A table that renumbers labels to 0 (background), 1 … n without gaps, and the area of each cell."""
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for top in range(0, len(labels), BAND_ROWS):  # large labels are in a file
        counts += np.bincount(labels[top : top + BAND_ROWS].ravel(), minlength=len(counts))
    lookup, _ = renumber_table(counts > 0)
    return lookup, counts[lookup > 0]


def _frame_lines(length: int, shown: int) -> NDArray[np.int64]:
    """For each row (or column) of the image the one of the frame that shows its centre."""
    return ((np.arange(length) + 0.5) * shown / length).astype(np.int64)


def _slices(lines: list[NDArray[np.int64]], at: Window) -> tuple[slice, slice]:
    """The part of the image whose pixel centres are in a window."""
    (y0, y1), (x0, x1) = (
        np.searchsorted(line, [start, start + length])
        for line, start, length in zip(lines, (at.y, at.x), (at.height, at.width), strict=True)
    )
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))


def _add(
    sums: Float32,
    tokens: Float32,
    ranks: NDArray[np.int32],
    lines: list[NDArray[np.int64]],
    at: Window,
    weights: Float32,
) -> None:
    """Add the tokens (N, D) of one window to the cells in it, each pixel with its weight in the window."""
    side = math.isqrt(len(tokens))
    y, x = (line[part] - first for line, part, first in zip(lines, _slices(lines, at), (at.y, at.x), strict=True))
    inside = ranks > 0
    token = (y * side // at.height)[:, None] * side + (x * side // at.width)
    cells, index = np.unique(ranks[inside], return_inverse=True)
    share = sparse.coo_matrix(
        (weights[np.ix_(y, x)][inside], (index, token[inside])), shape=(len(cells), len(tokens))
    ).tocsr()
    sums[cells - 1] += share @ tokens
