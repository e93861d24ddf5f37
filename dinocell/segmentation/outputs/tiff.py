"""Label images as TIFF, whole or tile by tile."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from dinocell.images.mapped import release

STREAM_BYTES = 2**27
CLASSIC_TIFF_BYTES = 2**32 - 2**25
TILE = 512


def label_tiff(labels: NDArray[Any], pixel_size: float | None) -> bytes:
    """Labels as zlib OME-TIFF: uint16, or uint32 past 65,535; the pixel size in µm as OME metadata and TIFF tags."""
    file = io.BytesIO()
    tifffile.imwrite(file, labels, **_tiff_options(pixel_size))
    return file.getvalue()


def _tiff_options(pixel_size: float | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "YX"}
    options: dict[str, Any] = {"ome": True, "compression": "zlib", "photometric": "minisblack", "metadata": metadata}
    if pixel_size:
        metadata |= {"PhysicalSizeX": pixel_size, "PhysicalSizeY": pixel_size}
        # ImageJ opens OME-TIFF without Bio-Formats too, and then knows only these tags.
        options |= {"resolution": (1e4 / pixel_size, 1e4 / pixel_size), "resolutionunit": "CENTIMETER"}
    return options


def stream_label_tiff(path: Path, labels: NDArray[Any], pixel_size: float | None) -> None:
    """A large label image as tiled TIFF, tile by tile, under its final name only once it is whole."""

    def tiles() -> Iterator[NDArray[Any]]:
        for y in range(0, labels.shape[0], TILE):
            for x in range(0, labels.shape[1], TILE):
                part = labels[y : y + TILE, x : x + TILE]
                yield np.pad(part, [(0, TILE - part.shape[0]), (0, TILE - part.shape[1])])
            release(labels)

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    layout: dict[str, Any] = {"shape": labels.shape, "dtype": labels.dtype, "tile": (TILE, TILE)}
    layout["bigtiff"] = labels.nbytes > CLASSIC_TIFF_BYTES  # older programs read classic TIFF only
    try:
        tifffile.imwrite(temporary, tiles(), **layout, **_tiff_options(pixel_size))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
