"""One row per cell: size, shape and intensity measured on a label image, band by band in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinocell.images.mapped import highest, release
from dinocell.labels.cells import renumber_table

BAND_PIXELS = 2**23
MIN_ROWS = 16

Float64 = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]

# Crofton-like weights of a border pixel by its border neighbours: bit patterns 10·diagonal + 2·straight + 1
# (Benkrid & Crookes, "Design and FPGA implementation of a perimeter estimator", 2000; as scikit-image's `perimeter`).
_PERIMETER_WEIGHTS = np.zeros(50)
_PERIMETER_WEIGHTS[[5, 7, 15, 17, 25, 27]] = 1
_PERIMETER_WEIGHTS[[21, 33]] = np.sqrt(2)
_PERIMETER_WEIGHTS[[13, 23]] = (1 + np.sqrt(2)) / 2


class Rows(Protocol):
    """Anything that gives rows of an image (H, W) as an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def cell_table(
    labels: Labels,
    intensity: Mapping[str, NDArray[Any]] | None = None,
    probability: Rows | None = None,
    pixel_size: float | None = None,
) -> pd.DataFrame:
    """Measure every cell.

    Args:
        labels: (H, W) integers, 0 = background; gaps in the numbering are fine.
        intensity: name → (H, W) channel; adds `mean_NAME`, `min_NAME`, `max_NAME` in the channel's own units.
        probability: (H, W) in [0, 1]; adds `confidence`, its mean over the cell.
        pixel_size: µm per pixel; without it `area_um2` is NaN.

    Returns:
        One row per cell, ascending by `label`: `area_px`, `area_um2`, `centroid_y`, `centroid_x` (pixel centres are
        whole numbers), `perimeter_px`, `eccentricity` (of the ellipse with the second moments of the pixel centres),
        `solidity` (area over its convex hull, pixels taken as squares), `orientation_deg` (major axis against the
        x axis, counter-clockwise, in [0, 180), as ImageJ's Angle), `touches_border`, confidence and intensities.
    """
    channels = dict(intensity or {})
    given: dict[str, Rows] = {**channels, **({} if probability is None else {"probability": probability})}
    for name, plane in given.items():
        if plane.shape != labels.shape:
            raise ValueError(f"{name} has shape {plane.shape}, the labels have {labels.shape}")
    numbers, last = _numbers(labels)
    sums = _Sums.of(len(numbers), list(channels))
    for band in _bands(labels, numbers):
        sums.add(band, channels, probability)
        sums.close(last <= band.top)
        for plane in (labels, *channels.values()):
            release(plane)
    return _frame(numbers, sums, pixel_size, probability is not None)


def _numbers(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels present, ascending, without 0; and the first row of the last band that each of 0, … n is seen in."""
    last = np.full(highest(labels) + 1, -1)
    step = _band_rows(labels)
    for top in range(0, labels.shape[0], step):
        last[np.asarray(labels[top : top + step]).ravel()] = top
        release(labels)
    last[0] = -1
    numbers = np.flatnonzero(last >= 0)
    return numbers, np.concatenate([[0], last[numbers]])


def _band_rows(labels: Labels) -> int:
    return max(MIN_ROWS, BAND_PIXELS // max(1, labels.shape[1]))


@dataclass
class _Band:
    """Rows `top` … of the label image renumbered to 0…n, with up to two rows more above and below for neighbours."""

    top: int
    rows: slice
    ranks: NDArray[np.int32]
    height: int

    @property
    def inner(self) -> NDArray[np.int32]:
        return self.ranks[self.rows]

    @property
    def source(self) -> slice:
        return slice(self.top, self.top + len(self.inner))


def _bands(labels: Labels, numbers: NDArray[np.int64]) -> Iterator[_Band]:
    keep = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 1, bool)
    keep[numbers] = True
    rank, _ = renumber_table(keep)
    height, step = labels.shape[0], _band_rows(labels)
    for top in range(0, height, step):
        before = min(2, top)
        end = min(top + step, height)
        ranks = rank[np.asarray(labels[top - before : min(end + 2, height)])]
        yield _Band(top, slice(before, before + end - top), ranks, height)


@dataclass
class _Sums:
    """Sums over the pixels of each cell (index 0 is background); added up band by band."""

    area: Float64
    y: Float64
    x: Float64
    yy: Float64
    xx: Float64
    yx: Float64
    perimeter: Float64
    confidence: Float64
    border: NDArray[np.bool_]
    totals: dict[str, Float64]
    lowest: dict[str, Float64]
    highest: dict[str, Float64]
    hull: Float64
    runs: list[NDArray[np.int32]]

    @classmethod
    def of(cls, count: int, channels: list[str]) -> _Sums:
        def zeros() -> Float64:
            return np.zeros(count + 1)

        return cls(
            **{name: zeros() for name in ("area", "y", "x", "yy", "xx", "yx", "perimeter", "confidence")},
            border=np.zeros(count + 1, np.bool_),
            totals={name: zeros() for name in channels},
            lowest={name: np.full(count + 1, np.inf) for name in channels},
            highest={name: np.full(count + 1, -np.inf) for name in channels},
            hull=np.ones(count + 1),
            runs=[],
        )

    def add(self, band: _Band, channels: Mapping[str, NDArray[Any]], probability: Rows | None) -> None:
        self._add_runs(band)
        self._add_border(band)
        self.perimeter += np.bincount(*_perimeter_weights(band), minlength=len(self.area))
        inside = band.inner > 0
        ranks = band.inner[inside]
        if probability is not None:
            values = np.asarray(probability[band.source])[inside]
            self.confidence += np.bincount(ranks, values, minlength=len(self.area))
        for name, plane in channels.items():
            values = np.asarray(plane[band.source])[inside].astype(np.float64)
            self.totals[name] += np.bincount(ranks, values, minlength=len(self.area))
            np.minimum.at(self.lowest[name], ranks, values)
            np.maximum.at(self.highest[name], ranks, values)

    def close(self, ended: NDArray[np.bool_]) -> None:
        """Hulls of the cells that have `ended`: only the runs of the others are kept."""
        runs = np.concatenate(self.runs)
        now = ended[runs[:, 0]]
        self.runs = [runs[~now]]
        _add_hull_areas(runs[now], self.hull)

    def _add_runs(self, band: _Band) -> None:
        """Moments from horizontal runs: far fewer than pixels, and what the convex hull needs anyway."""
        rank, y, start, stop = _runs(band.inner)
        y = y + band.top
        length = (stop - start).astype(np.float64)
        first, last = start.astype(np.float64), stop - 1.0
        sum_x = length * (first + last) / 2
        sum_xx = (last * (last + 1) * (2 * last + 1) - (first - 1) * first * (2 * first - 1)) / 6
        for total, value in (
            (self.area, length),
            (self.y, length * y),
            (self.x, sum_x),
            (self.yy, length * y * y),
            (self.xx, sum_xx),
            (self.yx, sum_x * y),
        ):
            total += np.bincount(rank, value, minlength=len(total))
        self.runs.append(np.stack([rank, y, start, stop], axis=1).astype(np.int32))

    def _add_border(self, band: _Band) -> None:
        self.border[band.inner[:, [0, -1]].ravel()] = True
        if band.top == 0:
            self.border[band.inner[0]] = True
        if band.source.stop == band.height:
            self.border[band.inner[-1]] = True


def _runs(ranks: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Horizontal runs of equal non-zero labels: rank, row, first column, column past the last."""
    height, width = ranks.shape
    change = np.ones((height, width + 1), np.bool_)
    change[:, 1:-1] = ranks[:, 1:] != ranks[:, :-1]
    y, x = np.nonzero(change)
    follows = y[1:] == y[:-1]
    y, start, stop = y[:-1][follows], x[:-1][follows], x[1:][follows]
    rank = ranks[y, start]
    inside = rank > 0
    return rank[inside], y[inside], start[inside], stop[inside]


def _perimeter_weights(band: _Band) -> tuple[NDArray[np.int32], Float64]:
    """Border pixels' ranks and their contributions to the perimeter, for the band's own rows."""
    ranks = np.pad(band.ranks, 2)  # beyond the image is background
    edge = np.zeros(ranks.shape, np.bool_)
    middle = ranks[1:-1, 1:-1]
    inner_edge = np.zeros(middle.shape, np.bool_)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner_edge |= ranks[dy : dy + middle.shape[0], dx : dx + middle.shape[1]] != middle
    edge[1:-1, 1:-1] = inner_edge & (middle > 0)
    y, x = np.nonzero(edge)
    own = (y >= band.rows.start + 2) & (y < band.rows.stop + 2)
    y, x = y[own], x[own]
    rank = ranks[y, x]
    code = np.ones(len(y), np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy or dx:
                same = edge[y + dy, x + dx] & (ranks[y + dy, x + dx] == rank)
                code += same * (10 if dy and dx else 2)
    return rank, _PERIMETER_WEIGHTS[code]


def _add_hull_areas(runs: NDArray[np.int32], areas: Float64) -> None:
    """Put the area of the convex hull of each cell's pixel squares, from all its runs (rank, y, start, stop)."""
    order = np.argsort(runs[:, 0], kind="stable")
    rank, y, start, stop = runs[order].T
    corners = np.stack(
        [np.stack([x, row], axis=1) for x, row in ((start, y), (start, y + 1), (stop, y), (stop, y + 1))], axis=1
    )  # [runs, 4, 2]
    bounds = np.flatnonzero(np.diff(rank)) + 1
    for first, last in zip([0, *bounds], [*bounds, len(rank)], strict=True):
        if last > first:
            hull = cv2.convexHull(corners[first:last].reshape(-1, 2))
            # cv2.contourArea computes in float32 from the origin: shift the hull there to stay exact.
            areas[rank[first]] = cv2.contourArea((hull - hull.min(axis=0)).astype(np.float32))


def _frame(numbers: NDArray[np.int64], sums: _Sums, pixel_size: float | None, confident: bool) -> pd.DataFrame:
    area = sums.area[1:]
    y, x = sums.y[1:] / area, sums.x[1:] / area
    mu_yy = sums.yy[1:] / area - y**2
    mu_xx = sums.xx[1:] / area - x**2
    mu_yx = sums.yx[1:] / area - y * x
    spread = np.sqrt(((mu_yy - mu_xx) / 2) ** 2 + mu_yx**2)
    mean = (mu_yy + mu_xx) / 2
    major = np.maximum(mean + spread, 1e-12)  # a single pixel has no extent: eccentricity 0, as regionprops
    columns: dict[str, Any] = {
        "label": numbers,
        "area_px": area.astype(np.int64),
        "area_um2": area * (np.nan if pixel_size is None else pixel_size**2),
        "centroid_y": y,
        "centroid_x": x,
        "perimeter_px": sums.perimeter[1:],
        "eccentricity": np.sqrt(np.clip(2 * spread / major, 0, 1)),
        "solidity": area / sums.hull[1:],
        # Rows grow downwards, hence the minus: angles are counter-clockwise as seen on the screen.
        "orientation_deg": np.degrees(0.5 * np.arctan2(-2 * mu_yx, mu_xx - mu_yy)) % 180,
        "touches_border": sums.border[1:],
    }
    if confident:
        columns["confidence"] = sums.confidence[1:] / area
    for name in sums.totals:
        columns[f"mean_{name}"] = sums.totals[name][1:] / area
        columns[f"min_{name}"] = sums.lowest[name][1:]
        columns[f"max_{name}"] = sums.highest[name][1:]
    return pd.DataFrame(columns)
