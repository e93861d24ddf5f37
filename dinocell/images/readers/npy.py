"""NumPy arrays on disk, whole or memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinocell.images import axes as axis_rules
from dinocell.images.image import ImageFile, reading, refuse_bomb
from dinocell.images.large_file import LazyFile, from_array, worth_it


def read_npy(file: Path, max_bytes: int | None) -> ImageFile:
    with reading(file, "not a readable NPY array (pickled objects are not loaded)"):
        view = np.load(file, mmap_mode="r", allow_pickle=False)
    refuse_bomb(view.shape, view.dtype.itemsize, max_bytes, file)
    axes, rule = axis_rules.guess_axes(view.shape)
    return ImageFile(array=np.array(view), axes=axes, axes_source=rule)


def open_npy(file: Path, axes: str | None = None) -> LazyFile | None:
    """A large NPY array, left in its file; None for arrays that `read_image` should read."""
    with reading(file, "not a readable NPY array"):
        view = np.load(file, mmap_mode="r", allow_pickle=False)
    if view.dtype.kind not in "uif" or view.ndim < 2:
        return None  # the reader says what is wrong
    names, source = axis_rules.guess_axes(view.shape)
    if axes is not None:
        names, source = axis_rules.check_given(axes, view.shape, str(file)), "given"
    if not view.dtype.isnative or not worth_it(view.shape, view.dtype, names, file):
        return None
    return LazyFile(
        shape=view.shape,
        axes=names,
        axes_source=source,
        dtype=view.dtype,
        loader=lambda index, make: from_array(view, names, index),
    )
