"""CZI, ND2 and OME-Zarr through bioio, LIF through liffile; the `formats` extra installs all of them."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.data.axes import AXES
from dinocell.data.image import ImageFile, reading, refuse_bomb
from dinocell.errors import DataError

BIOIO = (".czi", ".nd2", ".lif", ".zarr")
METRE = 1e6
"""µm."""
MAX_CHUNKS = 10**7
"""More chunks than this are not listed: readers keep an entry for each, before any is read."""


def read_bioio(file: Path, max_bytes: int | None) -> Iterator[ImageFile]:
    """Every scene of a file, with axes of length one dropped.

    Raises:
        DataError: the reader is not installed, or the file is unreadable or too large.
    """
    if file.suffix.lower() == ".zarr":
        _refuse_zarr_bomb(file, max_bytes)
    library = _import("liffile" if file.suffix.lower() == ".lif" else "bioio", file)
    with reading(file, f"{library.__name__} cannot read it"):
        scenes = _lif_images(library, file) if library.__name__ == "liffile" else _bioio_scenes(library, file)
        for image in scenes:
            refuse_bomb(image["shape"], np.dtype(image["dtype"]).itemsize, max_bytes, file)
            yield _as_image(image)


def _refuse_zarr_bomb(folder: Path, max_bytes: int | None) -> None:
    """Refuse by what the arrays' own headers declare: bioio lists every chunk before it tells the shape."""
    for name in (".zarray", "zarr.json"):
        for header in (*folder.glob(name), *folder.glob(f"*/{name}")):
            try:
                content = json.loads(header.read_text(encoding="utf-8"))
                shape, chunks, dtype = _zarr_array(content)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a group, or damaged: the reader says what is wrong
            refuse_bomb(shape, dtype.itemsize, max_bytes, folder)
            refuse_bomb(chunks, dtype.itemsize, max_bytes, folder)
            count = math.prod(-(-length // max(chunk, 1)) for length, chunk in zip(shape, chunks, strict=False))
            if count > MAX_CHUNKS:
                raise DataError(f"{header}: {count} chunks, more than {MAX_CHUNKS}: write the array in larger ones")


def _zarr_array(content: dict[str, Any]) -> tuple[list[int], list[int], np.dtype[Any]]:
    """Shape, chunk shape and dtype that the header of a Zarr array (format 2 or 3) declares."""
    if "chunk_grid" in content:
        chunks, dtype = content["chunk_grid"]["configuration"]["chunk_shape"], content["data_type"]
    else:
        chunks, dtype = content["chunks"], content["dtype"]
    return [int(length) for length in content["shape"]], [int(length) for length in chunks], np.dtype(dtype)


def _import(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{file}: reading {file.suffix} needs {name}: pip install 'dinocell[formats]'") from error


def _as_image(scene: dict[str, Any]) -> ImageFile:
    array = np.asarray(scene["read"]())
    names: str = scene["axes"]
    keep = [i for i, name in enumerate(names) if name in "YX" or array.shape[i] > 1]
    axes = "".join(names[i] for i in keep)
    return ImageFile(
        array=array.reshape([array.shape[i] for i in keep]),
        axes=axes,
        axes_source="metadata",
        pixel_size=scene["pixel_size"],
        channel_names=scene["channels"] if "C" in axes else (),
        series=scene["series"],
    )


def _bioio_scenes(bioio: Any, file: Path) -> Iterator[dict[str, Any]]:
    reader = bioio.BioImage(file)
    scenes = list(reader.scenes)
    for number, scene in enumerate(scenes):
        reader.set_scene(scene)
        names = str(reader.dims.order)
        yield {
            "axes": names,
            "shape": reader.shape,
            "dtype": reader.dtype,
            "read": lambda names=names: reader.get_image_data(names),
            "pixel_size": reader.physical_pixel_sizes.X,
            "channels": tuple(str(name) for name in reader.channel_names or ()),
            "series": f"s{number}" if len(scenes) > 1 else "",
        }


def _lif_images(liffile: Any, file: Path) -> Iterator[dict[str, Any]]:
    """Images of a LIF file; what has no Y or no X (xz and line scans) is passed over."""
    with liffile.LifFile(file) as lif:
        images = [image for image in lif.images if {"Y", "X"} <= set(image.dims)]
        if not images:
            raise DataError(f"{file}: none of its images has the axes Y and X")
        for number, image in enumerate(images):
            steps = np.diff(image.coords["X"][:2]) if "X" in image.coords else np.empty(0)
            yield {
                "axes": _lif_axes(tuple(image.dims), tuple(image.shape), file),
                "shape": image.shape,
                "dtype": image.dtype,
                "read": image.asarray,
                "pixel_size": float(steps[0]) * METRE if steps.size and steps[0] > 0 else None,
                "channels": (),
                "series": f"s{number}" if len(images) > 1 else "",
            }


def _lif_axes(dims: tuple[str, ...], shape: tuple[int, ...], file: Path) -> str:
    """One letter an axis; wavelengths (λ, Λ) and the like are channels, where there is only one such axis."""
    names = ""
    for name, length in zip(dims, shape, strict=True):
        letter = name if name in AXES or length == 1 else "C"
        if letter in names:
            raise DataError(f"{file}: more axes than can be told apart: {''.join(dims)} of lengths {shape}")
        names += letter
    return names
