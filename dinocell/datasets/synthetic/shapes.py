"""Positions and outlines of the cells of the embedded sample; labels are exact by construction.

A cell is the region ρ < 1 of a radial function ρ(y, x). Where two cells overlap a pixel goes to the smaller ρ, so
touching cells share a border and no pixel belongs to two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core.arrays import Labels

Shape = Literal["round", "elongated", "lobed", "spindle"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

Float = NDArray[np.float32]

# Smaller remnants, of cells cut by the rim, are neither drawn nor labelled.
MIN_AREA = 30


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Position, size and outline of one cell; lengths in pixels, angles in radians."""

    y: float
    x: float
    radius: float
    elongation: float
    angle: float
    bend: float
    taper: float
    waves: tuple[tuple[int, float, float], ...]
    nucleus_offset: tuple[float, float]
    nucleus_size: float

    @property
    def reach(self) -> float:
        """A radius around the centre that covers the whole cell."""
        return self.radius * float(np.sqrt(self.elongation)) * (1 + sum(abs(a) for _, a, _ in self.waves)) + 2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All cells of one field: labels (H, W) int32, and float32 fields on the same grid.

    radial: ρ of the pixel's own cell, 0 at its centre, 1 at its free border and outside.
    nuclear: the same for the nucleus, ≤ 1 inside it.
    depth: distance in pixels to the cell's border, 0 outside.
    """

    labels: Labels
    radial: Float
    nuclear: Float
    depth: Float

    @property
    def count(self) -> int:
        """Number of cells."""
        return int(self.labels.max(initial=0))

    def per_cell(self, values: NDArray[np.floating]) -> Float:
        """Spread one value per cell, shape (count,), over its pixels; background is 0."""
        return np.concatenate([[0.0], values]).astype(np.float32)[self.labels]


def draw_layout(rng: np.random.Generator, size: int, *, diameter: float, coverage: float, clustering: float) -> Layout:
    """Place cells until they cover their share of a size × size field.

    Args:
        diameter: typical diameter of a cell of the area's circle, pixels.
        coverage: share of the area to fill, in [0, 1); 0 gives an empty field.
        clustering: probability that a new cell is put against an existing one.
    """
    labels = np.zeros((size, size), np.int32)
    radial = np.ones((size, size), np.float32)
    nuclear = np.full((size, size), 9.0, np.float32)
    family = _shape_family(rng)
    cells: list[Cell] = []
    filled, wanted = 0, coverage * size * size
    for _ in range(int(12 * wanted / diameter**2) + 4):
        if filled >= wanted:
            break
        shape = SHAPES[int(rng.choice(len(SHAPES), p=family))]
        cell = _draw_cell(rng, shape, diameter, _position(rng, size, cells, clustering, diameter))
        added = _place(cell, len(cells) + 1, labels, radial, nuclear)
        if added:
            cells.append(cell)
            filled += added
    clean = clean_labels(labels)
    radial[clean == 0] = 1
    return Layout(labels=clean, radial=radial, nuclear=nuclear, depth=_depth(clean))


def crop_layout(layout: Layout, margin: int) -> Layout:
    """Cut `margin` pixels off each side and clean the labels cut by the new rim."""
    inner = slice(margin, layout.labels.shape[0] - margin)
    return Layout(
        labels=clean_labels(layout.labels[inner, inner]),
        radial=layout.radial[inner, inner],
        nuclear=layout.nuclear[inner, inner],
        depth=layout.depth[inner, inner],
    )


def clean_labels(labels: Labels) -> Labels:
    """Keep each label's largest 4-connected part if it has at least MIN_AREA pixels; renumber to 1..n."""
    clean = np.zeros(labels.shape, np.int32)
    count = 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, n = ndimage.label(labels[box] == label)
        if n == 0:
            continue
        areas = np.bincount(parts.ravel())[1:]
        if areas.max() >= MIN_AREA:
            count += 1
            clean[box][parts == int(areas.argmax()) + 1] = count
    return clean


def _shape_family(rng: np.random.Generator) -> NDArray[np.float64]:
    """Probabilities of the shapes: mostly one kind per field, as in a culture of one cell line."""
    weights = np.full(len(SHAPES), 0.15)
    weights[int(rng.integers(len(SHAPES)))] = 1.0
    return np.asarray(weights / weights.sum())


def _position(
    rng: np.random.Generator, size: int, cells: list[Cell], clustering: float, diameter: float
) -> tuple[float, float]:
    if cells and rng.random() < clustering:
        # Recent neighbours make the cluster grow outward in patches, as dividing cells do.
        mother = cells[int(rng.integers(max(0, len(cells) - 12), len(cells)))]
        angle, step = rng.uniform(0, 2 * np.pi), diameter * rng.uniform(0.72, 1.15)
        return mother.y + step * float(np.sin(angle)), mother.x + step * float(np.cos(angle))
    return float(rng.uniform(0, size)), float(rng.uniform(0, size))


def _draw_cell(rng: np.random.Generator, shape: Shape, diameter: float, position: tuple[float, float]) -> Cell:
    radius = diameter / 2 * float(np.clip(rng.lognormal(0, 0.16), 0.65, 1.5))
    elongation, bend, taper, wave = {
        "round": (rng.uniform(1.0, 1.2), 0.0, 0.0, 0.03),
        "elongated": (rng.uniform(1.6, 2.6), rng.uniform(-0.14, 0.14), 0.0, 0.035),
        "lobed": (rng.uniform(1.0, 1.8), rng.uniform(-0.15, 0.15), 0.0, 0.12),
        "spindle": (rng.uniform(2.1, 3.2), rng.uniform(-0.2, 0.2), rng.uniform(0.15, 0.45), 0.05),
    }[shape]
    # Amplitudes fall steeply with the order: strong high orders turn cells into stars.
    orders = (1, 2, 3, 4, 5, 6, 7)
    waves = tuple(
        (m, float(rng.normal(0, wave * (3 / (m + 1)) ** 1.3)), float(rng.uniform(0, 2 * np.pi))) for m in orders
    )
    return Cell(
        y=position[0],
        x=position[1],
        radius=radius,
        elongation=float(elongation),
        angle=float(rng.uniform(0, np.pi)),
        bend=float(bend),
        taper=float(taper),
        waves=waves,
        nucleus_offset=(float(rng.uniform(-0.18, 0.18)), float(rng.uniform(-0.18, 0.18))),
        nucleus_size=float(rng.uniform(0.42, 0.6)),
    )


def _place(cell: Cell, label: int, labels: Labels, radial: Float, nuclear: Float) -> int:
    """Draw the cell into the fields; returns the pixels it got, 0 if it would cover too much of its neighbours."""
    size = labels.shape[0]
    reach = cell.reach
    top, bottom = max(0, int(cell.y - reach)), min(size, int(cell.y + reach) + 1)
    left, right = max(0, int(cell.x - reach)), min(size, int(cell.x + reach) + 1)
    if top >= bottom or left >= right:
        return 0
    box = (slice(top, bottom), slice(left, right))
    dy = (np.arange(top, bottom, dtype=np.float32) - np.float32(cell.y))[:, None]
    dx = (np.arange(left, right, dtype=np.float32) - np.float32(cell.x))[None, :]
    rho, rho_nucleus = _radial(cell, dy, dx)
    inside = rho < 1
    area = int(inside.sum())
    taken = inside & (labels[box] > 0)
    # Deeper overlaps would leave crescents nobody calls cells.
    if area == 0 or taken.sum() > 0.16 * area or _centre_taken(cell, labels):
        return 0
    wins = inside & (rho < radial[box])
    labels[box][wins] = label
    radial[box][wins] = rho[wins]
    nuclear[box][wins] = rho_nucleus[wins]
    return int(wins.sum()) - int((wins & taken).sum())


def _centre_taken(cell: Cell, labels: Labels) -> bool:
    y, x = int(cell.y), int(cell.x)
    return 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1] and bool(labels[y, x])


def _radial(cell: Cell, dy: Float, dx: Float) -> tuple[Float, Float]:
    """ρ of the cell and of its nucleus on a window of offsets from the centre."""
    cos, sin = np.float32(np.cos(cell.angle)), np.float32(np.sin(cell.angle))
    a = np.float32(cell.radius * np.sqrt(cell.elongation))
    b = np.float32(cell.radius / np.sqrt(cell.elongation))
    u = (dx * cos + dy * sin) / a  # along the long axis, -1..1 inside
    v = (dy * cos - dx * sin) / b + np.float32(cell.bend * cell.elongation) * (u * u - np.float32(0.3))
    width = 1 - np.float32(cell.taper) * np.minimum(np.abs(u), 1)
    theta = np.arctan2(v, u)
    outline = np.ones_like(theta)
    for order, amplitude, phase in cell.waves:
        outline += np.float32(amplitude) * np.cos(order * theta + np.float32(phase))
    rho = np.sqrt(u * u + (v / width) ** 2) / np.maximum(outline, np.float32(0.45))
    # A nucleus is rounder than a long cell around it.
    stretch = np.float32(max(1.0, cell.elongation / 2.2))
    n_u = (u - np.float32(cell.nucleus_offset[0])) * stretch
    n_v = v - np.float32(cell.nucleus_offset[1])
    nucleus = np.sqrt(n_u * n_u + n_v * n_v) / np.float32(cell.nucleus_size)
    return rho.astype(np.float32), nucleus.astype(np.float32)


def _depth(labels: Labels) -> Float:
    inner = labels > 0
    for axis in (0, 1):
        differ = np.diff(labels, axis=axis) != 0
        first: tuple[slice, ...] = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        second: tuple[slice, ...] = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        inner[first] &= ~differ
        inner[second] &= ~differ
    distance = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.where(labels > 0, distance + 0.5, 0).astype(np.float32)
