"""Resampling of a region as it would be cut from the resampled whole: exact area averages, cubic and linear kernels.

The results are those of `cv2.resize` with INTER_AREA, INTER_CUBIC and INTER_LINEAR on the whole image, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dinocell.core.arrays import Float32
from dinocell.images.mapped import release

Kernel = Literal["area", "cubic", "linear"]
CUBIC_A = -0.75  # OpenCV's


class Source(Protocol):
    """A preprocessed image, read by region."""

    size: tuple[int, int]
    constant: bool

    def region(self, rows: slice, columns: slice) -> Float32: ...


class WholeSource:
    """A preprocessed image in memory, z (H, W) float32."""

    constant = False

    def __init__(self, z: Float32) -> None:
        self.z = z
        self.size: tuple[int, int] = (z.shape[0], z.shape[1])

    def region(self, rows: slice, columns: slice) -> Float32:
        """z (h, w) of a region."""
        return self.z[rows, columns]


class ScaledSource:
    """A source at another scale, resampled where it is read."""

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        self.source, self.size, self.constant = source, size, source.constant
        self.kernel: Kernel = "area" if size[0] * size[1] < source.size[0] * source.size[1] else "cubic"

    def region(self, rows: slice, columns: slice) -> Float32:
        """z (h, w) of a region."""
        return resample(self.source.region, self.source.size, self.size, rows, columns, self.kernel)


class FilledSource:
    """A source continued below and to the right to a larger size: by its mirror image, or by its last lines."""

    def __init__(self, source: Source, size: tuple[int, int], fill: Literal["mirror", "edge"]) -> None:
        self.source, self.size, self.constant = source, size, source.constant
        self._lines = [
            np.pad(np.arange(length), (0, wanted - length), mode="symmetric" if fill == "mirror" else "edge")
            for wanted, length in zip(size, source.size, strict=True)
        ]

    def region(self, rows: slice, columns: slice) -> Float32:
        """z (h, w) of a region."""
        y, x = self._lines[0][rows], self._lines[1][columns]
        part = self.source.region(slice(int(y.min()), int(y.max()) + 1), slice(int(x.min()), int(x.max()) + 1))
        return np.ascontiguousarray(part[np.ix_(y - y.min(), x - x.min())])


class ScaledMaps:
    """Maps (K, h, w) seen at another size (K, H, W), resampled where they are read; as `resize_maps`."""

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, maps: Float32 | ScaledMaps, size: tuple[int, int]) -> None:
        self.maps = maps
        self.shape: tuple[int, int, int] = (len(maps), *size)
        self.kernel: Kernel = "area" if size[0] * size[1] < maps.shape[1] * maps.shape[2] else "linear"

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, key: Any) -> Float32:
        key = key if isinstance(key, tuple) else (key,)
        which, rows, columns = (*key, slice(None), slice(None))[:3]
        rows, columns = (slice(*part.indices(n)) for part, n in zip((rows, columns), self.shape[1:], strict=True))
        if isinstance(which, slice):
            return np.stack([self._region(number, rows, columns) for number in range(len(self.maps))[which]])
        return self._region(which, rows, columns)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float32:
        return self[:].astype(dtype or np.float32, copy=False)

    def _region(self, number: int, rows: slice, columns: slice) -> Float32:
        def read(y: slice, x: slice) -> Float32:
            return self.maps[number, y, x]

        size = (self.maps.shape[1], self.maps.shape[2])
        return resample(read, size, self.shape[1:], rows, columns, self.kernel)

    def drop(self) -> None:
        """Give the pages of file-backed maps back to the system."""
        self.maps.drop() if isinstance(self.maps, ScaledMaps) else release(self.maps)


def resample(
    read: Callable[[slice, slice], NDArray[Any]],
    source: tuple[int, int],
    target: tuple[int, int],
    rows: slice,
    columns: slice,
    kernel: Kernel,
) -> Float32:
    """Rows and columns of an image of size `source` resampled to `target`; `read` gives what it needs of the source."""
    top, bottom, down = _weights(source[0], target[0], rows.start, rows.stop, kernel)
    left, right, across = _weights(source[1], target[1], columns.start, columns.stop, kernel)
    part = np.asarray(read(slice(top, bottom), slice(left, right)), np.float32)
    return np.ascontiguousarray((across @ (down @ part).T).T, np.float32)


def _weights(source: int, target: int, start: int, stop: int, kernel: Kernel) -> tuple[int, int, Any]:
    """Weights (stop − start, n) of the source pixels first … last (exclusive) in the target pixels start … stop."""
    step = source / target
    position = np.arange(start, stop)
    if kernel == "area":
        low, high = position * step, np.minimum((position + 1) * step, source)
        taps = np.floor(low)[:, None].astype(int) + np.arange(int(np.ceil(step)) + 1)
        weights = np.clip(np.minimum(taps + 1, high[:, None]) - np.maximum(taps, low[:, None]), 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        centre = (position + 0.5) * step - 0.5
        base = np.floor(centre).astype(int)
        t = centre - base
        offsets, weights = ([-1, 0, 1, 2], _cubic(t)) if kernel == "cubic" else ([0, 1], np.stack([1 - t, t], axis=1))
        taps = base[:, None] + np.array(offsets)
    taps = np.clip(taps, 0, source - 1)
    first, last = int(taps.min()), int(taps.max()) + 1
    line = np.repeat(np.arange(len(position)), taps.shape[1])
    matrix = sparse.csr_matrix((weights.ravel(), (line, taps.ravel() - first)), (len(position), last - first))
    return first, last, matrix.astype(np.float32)


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the pixels −1, 0, 1, 2 around a point `t` after pixel 0 (Keys 1981)."""
    a = CUBIC_A
    before = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a
    here = ((a + 2) * t - (a + 3)) * t * t + 1
    there = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1
    return np.stack([before, here, there, 1 - before - here - there], axis=1)
