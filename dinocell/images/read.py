"""Any microscope file → array, axes and pixel size.

Values are never changed on reading: dtype and range are the file's. What an axis means comes from the file's
metadata, from `axes.py`'s stated rules, or from the caller, and the result says which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dinocell.core.errors import DataError
from dinocell.images.image import ImageFile, every_nth_frame, override_axes, reading
from dinocell.images.large_file import LazyFile
from dinocell.images.listing import PLAIN, SUFFIXES
from dinocell.images.readers.npy import open_npy, read_npy
from dinocell.images.readers.picture import read_picture
from dinocell.images.readers.tiff import TIFFS, read_tiff
from dinocell.images.readers.tiff_planes import open_tiff
from dinocell.images.readers.vendor import BIOIO, read_bioio
from dinocell.images.readers.zarr import open_zarr, read_zarr


def read_image(path: str | os.PathLike[str], *, axes: str | None = None, max_bytes: int | None = None) -> ImageFile:
    """Read the first image of a file.

    Args:
        path: TIFF (OME, ImageJ, STK, LSM, BigTIFF), PNG, JPEG, BMP, NPY, OME-Zarr; CZI, ND2, LIF through bioio.
        axes: letters out of TZCYXS that override metadata and rules, e.g. "ZYX".
        max_bytes: refuse files that decode to more than this; default: `DINOCELL_MAX_GIB`, or 8 GiB.

    Raises:
        DataError: unreadable, truncated, too large, or axes that do not fit.
    """
    return next(read_series(path, axes=axes, max_bytes=max_bytes))


def read_series(
    path: str | os.PathLike[str], *, axes: str | None = None, t_step: int = 1, max_bytes: int | None = None
) -> Iterator[ImageFile]:
    """Every image of a file (TIFF series, CZI or LIF scenes); errors as `read_image`.

    Args:
        path: see `read_image`.
        axes: see `read_image`.
        t_step: read every `t_step`-th time point only; TIFF pages in between are not even decoded.
        max_bytes: see `read_image`; counts what is read.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"{file}: no such file")
    with reading(file, "cannot be read"):
        for image in _series(file, axes, t_step, max_bytes):
            if not image.array.size or image.array.dtype.kind not in "buif" or not {"Y", "X"} <= set(image.axes):
                found = f"{image.axes} {image.array.shape} of {image.array.dtype}"
                raise DataError(f"{file}: not a numeric image with Y and X axes: {found}")
            yield image


def _series(file: Path, axes: str | None, t_step: int, max_bytes: int | None) -> Iterator[ImageFile]:
    suffix = file.suffix.lower()
    if suffix in BIOIO:
        found = read_bioio(file, max_bytes)
    elif suffix == ".zarr":
        found = iter([read_zarr(file, max_bytes)])
    elif file.is_dir():
        raise DataError(f"{file}: is a folder, not an image")
    elif suffix in TIFFS:
        yield from read_tiff(file, axes, t_step, max_bytes)
        return
    elif suffix in PLAIN:
        found = iter([read_picture(file, max_bytes)])
    elif suffix == ".npy":
        found = iter([read_npy(file, max_bytes)])
    else:
        raise DataError(f"{file}: unknown image type {suffix or '(none)'}; known: {' '.join(SUFFIXES)}")
    for image in found:
        yield every_nth_frame(override_axes(image, axes, file), t_step)


def open_lazily(path: str | os.PathLike[str], *, axes: str | None = None) -> LazyFile | None:
    """A TIFF, OME-Zarr or NPY file that decodes to more than 256 MiB, to be loaded plane by plane.

    Args:
        path: see `read_image`.
        axes: see `read_image`.

    Returns:
        None for small files, other formats, and the layouts of TIFF that can only be read whole.

    Raises:
        DataError: unreadable, axes that do not fit, or a plane that decodes to more than 64 GiB.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".zarr" and file.is_dir():
        return open_zarr(file, axes)
    if not file.is_file():
        return None
    if suffix in TIFFS:
        return open_tiff(file, axes)
    return open_npy(file, axes) if suffix == ".npy" else None
