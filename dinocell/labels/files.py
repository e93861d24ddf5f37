"""Label images as files: read from any image format, written as OME-TIFF."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from dinocell.core.errors import DataError
from dinocell.core.files import AtomicFile
from dinocell.images.mapped import highest, release
from dinocell.images.read import read_image

STREAM_BYTES = 2**27
"""Labels above this size are written tile by tile."""
TILE = 512
CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""Above this many bytes of labels the file may not fit into a classic TIFF."""


def read_labels(path: str | os.PathLike[str]) -> npt.NDArray[np.int32]:
    """Read a label image: int32 (H, W), 0 = background.

    Colour images are accepted only when their colour channels are equal.

    Raises:
        DataError: unreadable, not a single plane, fractional, negative or above 2³¹ − 1.
    """
    image = read_image(path)
    array = image.array
    if "S" in image.axes:
        array = np.moveaxis(array, image.axes.index("S"), -1)
        colour = array[..., :3]
        if not (colour == colour[..., :1]).all():
            raise DataError(f"{path}: a colour image, not a label image")
        array = array[..., 0]
    array = np.squeeze(array)
    if array.ndim != 2:
        raise DataError(f"{path}: a label image has one plane, this has shape {image.array.shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise DataError(f"{path}: fractional values, not a label image")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise DataError(f"{path}: labels must be within 0 … 2³¹ − 1, found {array.min()} … {array.max()}")
    return array.astype(np.int32)


def write_labels(
    path: str | os.PathLike[str], labels: npt.ArrayLike, pixel_size: float | None = None, *, durable: bool = True
) -> None:
    """Write a label image as zlib-compressed OME-TIFF, whole or not at all; equal labels give equal files.

    Large images are tiled and read tile by tile, so that memory-mapped labels are never in memory as a whole.

    Args:
        path: its folder is made if absent.
        labels: (H, W) integers ≥ 0 or booleans; stored as uint16, or uint32 if a label exceeds 65,535.
        pixel_size: µm per pixel, stored as OME metadata and as TIFF resolution.
        durable: see `AtomicFile`.
    """
    array = np.asanyarray(labels)  # a memory-mapped array stays one
    assert array.ndim == 2 and array.dtype.kind in "bui" and (array.dtype.kind != "i" or array.min(initial=0) >= 0)
    dtype = np.dtype(np.uint16 if highest(array) <= 65_535 else np.uint32)
    size = array.size * dtype.itemsize
    options: dict[str, Any] = {"ome": True, "compression": "zlib", "photometric": "minisblack"}
    options["metadata"] = {"axes": "YX", "UUID": str(_identity(array))}
    if pixel_size:
        options["metadata"] |= {"PhysicalSizeX": pixel_size, "PhysicalSizeY": pixel_size}
        # ImageJ opens OME-TIFF without Bio-Formats too, and then reads only the resolution.
        options |= {"resolution": (1e4 / pixel_size, 1e4 / pixel_size), "resolutionunit": "CENTIMETER"}
    with AtomicFile(Path(path), durable=durable) as temporary:
        if size <= STREAM_BYTES:
            tifffile.imwrite(temporary, array.astype(dtype), **options)
        else:
            options |= {"shape": array.shape, "dtype": dtype, "tile": (TILE, TILE)}
            options["bigtiff"] = size > CLASSIC_TIFF_BYTES  # older programs read classic TIFF only
            tifffile.imwrite(temporary, _tiles(array, dtype), **options)


def _identity(labels: npt.NDArray[Any]) -> uuid.UUID:
    """Identifier that OME-XML requires for the file, from its labels: a random one would differ from run to run."""
    digest = hashlib.blake2b(repr(labels.shape).encode(), digest_size=16)
    for top in range(0, len(labels), TILE):
        digest.update(labels[top : top + TILE].astype(np.uint32, order="C").data)
        release(labels)
    return uuid.UUID(bytes=digest.digest(), version=4)


def _tiles(labels: npt.NDArray[Any], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    for y in range(0, labels.shape[0], TILE):
        for x in range(0, labels.shape[1], TILE):
            part = labels[y : y + TILE, x : x + TILE].astype(dtype)
            yield np.pad(part, [(0, TILE - part.shape[0]), (0, TILE - part.shape[1])])
        release(labels)
