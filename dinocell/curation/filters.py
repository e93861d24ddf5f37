"""Quality filters; every rejection reports its value and the limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.core.jit import compiled
from dinocell.curation.config import FilterConfig

Plane = npt.NDArray[Any]
Gray = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

GAUSSIAN = cv2.getGaussianKernel(7, 1, cv2.CV_32F)
BLOCK = 16
"""Side (px) of the blocks in which structure is distinguished from noise: about half a small cell."""
NOISE_STEP = 4
SAMPLED = 2**14
"""Pixels sampled to count the levels of float planes."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Reason of a rejection: a short word to group by, and its numbers."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class CropScores:
    """Scores of one 8-bit crop, which the limits of `FilterConfig` apply to."""

    focus: float
    structure: float
    occupied: float


def check_plane(plane: Plane, limits: FilterConfig, counts: Counts | None) -> Rejection | None:
    """Judge a plane (H, W) by its own values, before any contrast change; `counts` is the histogram of 8 or 16 bit."""
    least = max(limits.min_side, BLOCK)  # the scores need a block
    if min(plane.shape) < least:
        return Rejection(reason="too small", detail=f"{plane.shape[0]}×{plane.shape[1]} px, limit {least}")
    values, counts = _levels(plane, counts)
    if values.size == 0:
        return Rejection(reason="constant", detail="no finite value")
    if values.size == 1:
        return Rejection(reason="constant", detail=f"every pixel is {values[0]:g}")
    total = int(counts.sum())
    if values.size < limits.min_levels:
        return Rejection(
            reason="not microscopy-like", detail=f"only {values.size} gray levels, limit {limits.min_levels}"
        )
    if counts.max() > limits.max_single_value * total:
        top = int(counts.argmax())
        detail = f"{counts[top] / total:.1%} of the pixels are {values[top]:g}, limit {limits.max_single_value:.1%}"
        return Rejection(reason="almost empty", detail=detail)
    saturated = _saturated(plane, values, counts)
    if saturated > limits.max_saturated:
        return Rejection(reason="saturated", detail=f"{saturated:.1%} at full scale, limit {limits.max_saturated:.1%}")
    return None


def check_crop(scores: CropScores, limits: FilterConfig) -> Rejection | None:
    """Judge an 8-bit crop by its scores."""
    if scores.focus < limits.min_focus:
        return Rejection(reason="low focus", detail=f"focus {scores.focus:.3g}, limit {limits.min_focus:g}")
    if scores.structure < limits.min_structure:
        detail = f"structure {scores.structure:.3g} × noise, limit {limits.min_structure:g}"
        return Rejection(reason="almost empty", detail=detail)
    if scores.occupied < limits.min_occupied:
        detail = f"{scores.occupied:.2%} of the blocks stand out, limit {limits.min_occupied:.2%}"
        return Rejection(reason="almost empty", detail=detail)
    return None


def score_crop(crop: Gray, half: Gray | None = None) -> CropScores:
    """Focus, structure and occupancy of an 8-bit crop (H, W), both sides at least one block.

    Focus is the variance of the Laplacian at half size after a 1 px Gaussian, so that camera noise is not detail.
    Structure is the variance of block means about a smooth background, relative to that of white noise with the
    blocks' inner variance: 1 for noise. Occupied is the share of blocks whose contrast is 1.5 × the noise
    (Immerkær, Comput. Vis. Image Underst. 64, 300 (1996)) or more. `half` is `halve(crop)`, if the caller has it.
    """
    half = halve(crop) if half is None else half
    smooth = np.asarray(cv2.sepFilter2D(half, cv2.CV_32F, GAUSSIAN, GAUSSIAN), dtype=np.float32)
    focus = float(_laplacian_variance(smooth))
    means, variances = _blocks(crop)
    inner = max(float(variances.mean()), 1e-3)
    structure = float(np.var(_without_background(means))) * BLOCK**2 / inner
    occupied = float((np.sqrt(variances) > max(1.5 * _noise(crop), 2.0)).mean())
    return CropScores(focus=focus, structure=structure, occupied=occupied)


def halve(crop: Gray) -> Gray:
    """Crop at half size, by area; an odd last row or column is left out: exact halves are many times faster."""
    height, width = max(crop.shape[0] // 2, 1), max(crop.shape[1] // 2, 1)
    even = crop[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _levels(plane: Plane, counts: Counts | None) -> tuple[Plane, Counts]:
    """Distinct finite values and their counts; of large float planes, in a regular sample."""
    if counts is not None:
        values = np.flatnonzero(counts)
        return values, counts[values]
    step = max(int((plane.size / SAMPLED) ** 0.5), 1)
    sample = plane[::step, ::step]
    finite = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
    found, times = np.unique(finite, return_counts=True)
    return found, times


def _saturated(plane: Plane, values: Plane, counts: Counts) -> float:
    """Share of pixels at the brightest value, if that is where an integer camera clips (2ᵏ − 1)."""
    brightest = int(values[-1])
    clips = plane.dtype.kind in "ui" and brightest >= 255 and (brightest + 1) & brightest == 0
    return float(counts[-1] / counts.sum()) if clips else 0.0


@compiled()
def _laplacian_variance(smooth: npt.NDArray[np.float32]) -> float:
    """Variance of cv2.Laplacian (ksize 1) over the inner pixels."""
    rows, columns = smooth.shape
    sums, squares = np.zeros(columns), np.zeros(columns)  # one sum per column lets the compiler use vector instructions
    for y in range(1, rows - 1):
        above, here, below = smooth[y - 1], smooth[y], smooth[y + 1]
        for x in range(columns - 2):
            value = np.float64(above[x + 1] + below[x + 1] + here[x] + here[x + 2] - np.float32(4) * here[x + 1])
            sums[x] += value
            squares[x] += value * value
    count = max((rows - 2) * (columns - 2), 1)
    return squares.sum() / count - (sums.sum() / count) ** 2


@compiled()
def _blocks(crop: Gray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and variance of every whole 16 px block."""
    rows, columns = crop.shape[0] // BLOCK, crop.shape[1] // BLOCK
    sums = np.zeros((rows, columns))
    squares = np.zeros((rows, columns))
    for y in range(rows * BLOCK):
        line = crop[y]
        for column in range(columns):
            total, square = np.int32(0), np.int32(0)  # 32 bit lets the compiler use vector instructions
            for x in range(column * BLOCK, (column + 1) * BLOCK):
                value = np.int32(line[x])
                total = np.int32(total + value)
                square = np.int32(square + value * value)
            sums[y // BLOCK, column] += total
            squares[y // BLOCK, column] += square
    means = sums / BLOCK**2
    return means, squares / BLOCK**2 - means * means


def _without_background(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Block means minus their best quadratic surface: uneven light is not structure."""
    if means.size < 16:
        return means
    terms = _surfaces(*means.shape)
    flat = means.ravel()
    return np.asarray(flat - (terms @ flat) @ terms)


@lru_cache(maxsize=64)
def _surfaces(height: int, width: int) -> npt.NDArray[np.float64]:
    """Orthonormal rows [6, height · width] that span the quadratic surfaces of a grid."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    parts = (np.ones((1, 1)), y, x, y * y, y * x, x * x)
    terms = np.stack([np.broadcast_to(part, (height, width)).ravel() for part in parts])
    _, sizes, right = np.linalg.svd(terms, full_matrices=False)
    return np.asarray(right[sizes > 1e-9 * sizes[0]])  # fewer than six on a grid one or two blocks wide


def _noise(crop: Gray) -> float:
    """Standard deviation of the pixel noise, from every fourth row: as good as all of them, and four times as fast."""
    pixels = len(range(1, crop.shape[0] - 1, NOISE_STEP)) * max(crop.shape[1] - 2, 0)
    return float(_noise_sum(crop) / max(pixels, 1) * (np.pi / 2) ** 0.5 / 6)


@compiled()
def _noise_sum(crop: Gray) -> np.int64:
    """Sum of the absolute response to [1 −2 1; −2 4 −2; 1 −2 1] over the inner pixels of every fourth row."""
    columns = crop.shape[1]
    bend = np.empty(columns, dtype=np.int32)
    total = np.int64(0)
    for y in range(1, crop.shape[0] - 1, NOISE_STEP):
        above, here, below = crop[y - 1], crop[y], crop[y + 1]
        for x in range(columns):
            bend[x] = np.int32(np.int32(above[x]) - np.int32(2 * here[x]) + np.int32(below[x]))
        row = np.int32(0)
        for x in range(columns - 2):
            row = np.int32(row + np.int32(abs(np.int32(bend[x] - bend[x + 1] - bend[x + 1] + bend[x + 2]))))
        total += row
    return total
