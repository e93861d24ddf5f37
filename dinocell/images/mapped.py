"""Arrays in files on disk, for images and maps too large for memory."""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.core.errors import DataError

BAND_BYTES = 2**25
"""Bytes of an array that are worked on at a time."""
FAULT_BYTES = 2**17
"""Bytes that reading a short run of a file-backed array may map: two of Linux's runs of pages."""


def scratch_array(shape: tuple[int, ...], dtype: Any, folder: Path | None = None) -> npt.NDArray[Any]:
    """Zeros in an unnamed file of `folder` (default: the system's temporary one), deleted with the array.

    Raises:
        DataError: the disk has too little room.
    """
    where = Path(folder or tempfile.gettempdir())
    check_room(math.prod(shape) * np.dtype(dtype).itemsize, where)
    with tempfile.TemporaryFile(dir=where) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def check_room(needed: int, where: Path) -> None:
    """Raise DataError when the disk of the folder `where` has less than `needed` bytes free."""
    free = shutil.disk_usage(where).free
    if needed > free:
        raise DataError(
            f"{where}: {needed / 2**30:.1f} GiB of scratch space are needed, {free / 2**30:.1f} GiB are free"
        )


def release(array: npt.NDArray[Any]) -> None:
    """Give a file-backed array's pages back to the system; their content stays in the file."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def copy_by_bands(target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    """target[…] = source for arrays (…, H, W), some rows at a time; file-backed pages are given back in between.

    The system maps a run of pages (64 KiB) around each one that is read. So a narrow region of a wide file-backed array
    costs many times its size if it is read at once.
    """
    for index in np.ndindex(target.shape[:-2]):
        rows, columns = target.shape[-2:]
        step = max(1, BAND_BYTES // (max(columns * source.dtype.itemsize, FAULT_BYTES)))
        for top in range(0, rows, step):
            band = (*index, slice(top, top + step))
            target[band] = source[band]
            release(source)
            release(target)


def band_rows(array_shape: tuple[int, ...], itemsize: int) -> int:
    """Rows of a plane (H, W, …) that make up about `BAND_BYTES`."""
    return max(1, BAND_BYTES // max(1, math.prod(array_shape[1:]) * itemsize))


def highest(labels: npt.NDArray[Any]) -> int:
    """Largest value of an image (H, W) of numbers from 0 on; 0 when empty. File-backed pages are given back."""
    step = band_rows(labels.shape, labels.dtype.itemsize)
    found = 0
    for top in range(0, len(labels), step):
        found = max(found, int(labels[top : top + step].max(initial=0)))
        release(labels)
    return found
