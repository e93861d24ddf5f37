"""Files too large to read whole: the header gives shape and dtype, and planes are loaded one by one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.images import axes as axis_rules
from dinocell.images.image import LIMIT, Array, refuse_bomb
from dinocell.images.mapped import scratch_array

LAZY_BYTES = 2**28
"""Files that decode to more than this are loaded plane by plane, and planes larger than it are stored on disk."""
MAX_PLANE_BYTES = 64 * 2**30
Make = Callable[[tuple[int, ...], Any], Array]


@dataclass(frozen=True, kw_only=True)
class LazyFile:
    """An image whose planes are loaded one at a time.

    Attributes:
        shape: of the whole image, along `axes`.
        axes: one letter per axis out of TZCYXS.
        axes_source: "metadata", "given", or the rule in words.
        dtype: of the pixels.
        loader: (position along T and Z, what makes an array) → the plane, axes in the order CYXS.
        pixel_size: µm per pixel, None when the file does not say.
        channel_names: as many as the C axis is long, or empty.
    """

    shape: tuple[int, ...]
    axes: str
    axes_source: str
    dtype: np.dtype[Any]
    loader: Callable[[tuple[int, ...], Make], Array]
    pixel_size: float | None = None
    channel_names: tuple[str, ...] = ()

    @property
    def plane_axes(self) -> str:
        """Axes of one plane."""
        return "".join(letter for letter in "CYXS" if letter in self.axes)

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Shape of one plane, along `plane_axes`."""
        return tuple(self.shape[self.axes.index(letter)] for letter in self.plane_axes)

    @property
    def bytes(self) -> int:
        """Size of the whole image when decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def plane(self, index: tuple[int, ...], folder: Path | None = None) -> Array:
        """Load one plane, along `plane_axes`; a large one is stored in a scratch file of `folder` or stays in its own.

        Raises:
            DataError: damaged, or the disk has no room.
        """

        def make(shape: tuple[int, ...], dtype: Any) -> Array:
            if math.prod(shape) * np.dtype(dtype).itemsize > LAZY_BYTES:
                return scratch_array(shape, dtype, folder)
            return np.zeros(shape, dtype)

        return self.loader(index, make)


def worth_it(shape: tuple[int, ...], dtype: np.dtype[Any], axes: str, where: Path) -> bool:
    """Decide if an image is loaded plane by plane.

    Raises:
        DataError: a single plane decodes to more than 64 GiB, or than `DINOCELL_MAX_GIB` allows.
    """
    if len(shape) < 2 or 0 in shape or not {"Y", "X"} <= set(axes):
        return False
    plane = [length for letter, length in zip(axes, shape, strict=True) if letter not in "TZ"]
    refuse_bomb(plane, dtype.itemsize, None if os.environ.get(LIMIT) else MAX_PLANE_BYTES, where)
    refuse_bomb(shape, dtype.itemsize, sys.maxsize, where)  # any number of planes, if the file is large enough for them
    return dtype.kind in "uif" and math.prod(shape) * dtype.itemsize > LAZY_BYTES


def from_array(array: Array, axes: str, index: tuple[int, ...]) -> Array:
    """A plane of an array, in memory or not, as a view along CYXS."""
    order = [axes.index(letter) for letter in axis_rules.AXES if letter in axes]
    return array.transpose(order)[index]
