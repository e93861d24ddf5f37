"""What is not worth training on, each with its number and the limit it missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.curation.config import FilterConfig

Plane = npt.NDArray[Any]
Gray = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

BLOCK = 16
"""Side (px) of the blocks in which structure is told from noise: about half a small cell."""
SAMPLED = 2**16
"""Pixels looked at to count the levels of float planes."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why something was left out: a short reason to group by, and the numbers behind it."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class CropScores:
    """Numbers of one 8-bit crop that the limits are compared with (see `FilterConfig`)."""

    focus: float
    structure: float
    occupied: float


def check_plane(plane: Plane, limits: FilterConfig, counts: Counts | None) -> Rejection | None:
    """Judge a plane (H, W) by its own values, before any contrast change; `counts` is the histogram of 8 or 16 bit."""
    if min(plane.shape) < limits.min_side:
        return Rejection(reason="too small", detail=f"{plane.shape[0]}×{plane.shape[1]} px, limit {limits.min_side}")
    values, counts = _levels(plane, counts)
    if values.size == 0:
        return Rejection(reason="constant", detail="no finite value")
    if values.size == 1:
        return Rejection(reason="constant", detail=f"every pixel is {values[0]:g}")
    total = int(counts.sum())
    if values.size < limits.min_levels:
        return Rejection(
            reason="not microscopy-like", detail=f"only {values.size} grey levels, limit {limits.min_levels}"
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


def score_crop(crop: Gray) -> CropScores:
    """Focus, structure and occupancy of an 8-bit crop (H, W), both sides at least one block.

    Focus is the variance of the Laplacian after a 2 px Gaussian, so that camera noise is not taken for detail.
    Structure is the variance of block means about a smooth background, relative to that of white noise with the
    blocks' inner variance: 1 for noise. Occupied is the share of blocks whose contrast is 1.5 × the noise
    (Immerkær, Comput. Vis. Image Underst. 64, 300 (1996)) or more.
    """
    values = crop.astype(np.float32)
    smooth = cv2.GaussianBlur(values, (11, 11), 2)
    focus = float(cv2.meanStdDev(cv2.Laplacian(smooth, cv2.CV_32F, ksize=1))[1][0, 0]) ** 2
    means, variances = _blocks(values)
    inner = max(float(variances.mean(dtype=np.float64)), 1e-3)
    structure = float(np.var(_without_background(means))) * BLOCK**2 / inner
    occupied = float((np.sqrt(variances) > 1.5 * max(_noise(values), 2 / 1.5)).mean())
    return CropScores(focus=focus, structure=structure, occupied=occupied)


def _levels(plane: Plane, counts: Counts | None) -> tuple[Plane, Counts]:
    """Distinct finite values and how often each occurs; of large float planes, in a regular sample."""
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


def _blocks(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and variance of every whole 16 px block."""
    rows, columns = (side // BLOCK for side in values.shape)
    size = (columns, rows)
    whole = values[: rows * BLOCK, : columns * BLOCK]
    means = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), dtype=np.float32)
    squares = np.asarray(cv2.resize(whole * whole, size, interpolation=cv2.INTER_AREA), dtype=np.float32)
    return means, np.maximum(squares - means * means, 0)


def _without_background(means: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Block means minus their best quadratic surface: uneven light is no structure."""
    if means.size < 16:
        return means.astype(np.float64)
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : means.shape[0] * 1j, -1 : 1 : means.shape[1] * 1j])
    terms = np.stack([np.ones_like(y), y, x, y * y, x * y, x * x], axis=1)  # [blocks, 6]
    flat = means.ravel().astype(np.float64)
    solution = np.linalg.lstsq(terms, flat, rcond=None)[0]
    return np.asarray(flat - terms @ solution)


def _noise(values: npt.NDArray[np.float32]) -> float:
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
    return cv2.norm(cv2.filter2D(values, -1, kernel), cv2.NORM_L1) / values.size * (np.pi / 2) ** 0.5 / 6
