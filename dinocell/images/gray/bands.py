"""`channels.to_gray` for planes too large for floats in memory: the same values, band by band."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.images.gray.channels import channels_equal, dark_background, luma, to_gray
from dinocell.images.gray.contrast import HIGH_PERCENTILE, LOW_PERCENTILE, histogram, limits, to_unit
from dinocell.images.image import Array, Plane
from dinocell.images.mapped import band_rows, release, scratch_array


def to_gray_large(array: Array, axes: str, folder: Path | None = None) -> Plane:
    """Gray plane (H, W) equal to `to_gray(array, axes)`; if it has to be computed, it is stored in a scratch file.

    Args:
        array: one plane, in memory or file-backed.
        axes: its axes, in the order CYXS.
        folder: of the scratch file.
    """
    if axes == "YX":
        return array
    if "C" in axes and "S" in axes:  # colour images by channel: too rare for a banded reading
        return to_gray(array, axes)
    if "C" in axes:
        return array[0] if len(array) == 1 else _combined(list(array), folder)
    samples = [array[..., s] for s in range(array.shape[2])]
    samples = samples[:-1] if len(samples) in (2, 4) else samples
    if len(samples) == 1 or all(same(samples, rows) for rows in row_bands(samples[0])):
        return samples[0]
    if dark_background(samples):
        return _combined(samples, folder)
    out = scratch_array(array.shape[:2], array.dtype if array.dtype in (np.uint8, np.uint16) else np.float32, folder)
    for rows in row_bands(array):
        out[rows] = luma(array[rows, :, :3])
        _drop(array, out)
    return out


def row_bands(array: Array) -> Iterator[slice]:
    """Rows of a plane (H, W, …), some megabytes at a time."""
    step = band_rows(array.shape, array.dtype.itemsize)
    for top in range(0, len(array), step):
        yield slice(top, min(top + step, len(array)))


def same(samples: list[Plane], rows: slice) -> bool:
    """Compare the channels of a colour image in these rows: True if they are equal."""
    equal = channels_equal([np.ascontiguousarray(plane[rows]) for plane in samples])
    _drop(*samples)
    return equal


def _combined(channels: list[Plane], folder: Path | None) -> Plane:
    """As `gray.combine`: the mean of the channels, each stretched from its percentiles, as uint16."""
    stretched = [(plane, *_limits(plane)) for plane in channels]
    used = [(plane, low, high) for plane, low, high in stretched if high > low]
    out = scratch_array(channels[0].shape, np.uint16, folder)
    for rows in row_bands(channels[0]):
        total = np.zeros(out[rows].shape, np.float32)
        for plane, low, high in used:
            total += to_unit(np.ascontiguousarray(plane[rows]), low, high)
        total *= np.float32(65_535 / max(len(used), 1))
        out[rows] = np.rint(total, out=total).astype(np.uint16)
        _drop(*channels, out)
    return out


def _limits(plane: Plane) -> tuple[float, float]:
    if plane.dtype not in (np.uint8, np.uint16):
        return limits(plane, LOW_PERCENTILE, HIGH_PERCENTILE)
    return limits(plane, LOW_PERCENTILE, HIGH_PERCENTILE, histogram_by_bands(plane))


def histogram_by_bands(plane: Plane) -> Any:
    """Counts of every value of a uint8 or uint16 plane (H, W), int64."""
    counts = np.zeros(np.iinfo(plane.dtype).max + 1, np.int64)
    for rows in row_bands(plane):
        found = histogram(np.ascontiguousarray(plane[rows]))
        counts[: len(found)] += found
        release(plane)
    return counts


def _drop(*arrays: Array) -> None:
    for array in arrays:
        release(array)
