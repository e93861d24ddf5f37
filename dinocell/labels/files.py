"""Label images in and out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from dinocell.core.errors import DataError
from dinocell.images.read import read_image


def read_labels(path: str | os.PathLike[str]) -> npt.NDArray[np.int32]:
    """Read a label image: int32 (H, W), 0 = background.

    Colour pictures are accepted only when their colour channels are equal.

    Raises:
        DataError: unreadable, not a single plane, fractional, negative or above 2³¹ − 1.
    """
    image = read_image(path)
    array = image.array
    if "S" in image.axes:
        array = np.moveaxis(array, image.axes.index("S"), -1)
        colour = array[..., :3]
        if not (colour == colour[..., :1]).all():
            raise DataError(f"{path}: a colour picture, not a label image")
        array = array[..., 0]
    array = np.squeeze(array)
    if array.ndim != 2:
        raise DataError(f"{path}: a label image has one plane, this has shape {image.array.shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise DataError(f"{path}: fractional values, not a label image")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise DataError(f"{path}: labels must lie in 0 … 2³¹ − 1, found {array.min()} … {array.max()}")
    return array.astype(np.int32)


def write_labels(path: str | os.PathLike[str], labels: npt.ArrayLike, pixel_size: float | None = None) -> None:
    """Write a label image (H, W) as zlib TIFF: uint16, or uint32 past 65,535; `pixel_size` in µm."""
    array = np.asarray(labels)
    assert array.ndim == 2 and array.dtype.kind in "bui" and (array.size == 0 or array.min() >= 0)
    dtype = np.uint16 if array.size == 0 or array.max() <= 65_535 else np.uint32
    write_label_tiff(Path(path), array.astype(dtype), pixel_size)


def write_label_tiff(path: Path, labels: npt.NDArray[np.unsignedinteger[Any]], pixel_size: float | None) -> None:
    """Write labels (H, W) uint16 or uint32 as zlib TIFF, with the pixel size in µm as OME metadata."""
    keywords: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": {"axes": "YX"}}
    if pixel_size:
        sizes = {"PhysicalSizeX": pixel_size, "PhysicalSizeY": pixel_size}
        keywords |= {"ome": True, "metadata": {"axes": "YX", **sizes}}
    tifffile.imwrite(path, labels, **keywords)
