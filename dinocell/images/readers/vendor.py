"""CZI and ND2 through bioio, LIF through liffile; the `formats` extra installs all of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.core.errors import DataError
from dinocell.images.axes import AXES
from dinocell.images.image import ImageFile, reading, refuse_bomb

BIOIO = (".czi", ".nd2", ".lif")
METRE = 1e6
"""µm."""


def read_bioio(file: Path, max_bytes: int | None) -> Iterator[ImageFile]:
    """Every scene of a file, with axes of length one dropped.

    Raises:
        DataError: the reader is not installed, or the file is unreadable or too large.
    """
    library = _import("liffile" if file.suffix.lower() == ".lif" else "bioio", file)
    with reading(file, f"{library.__name__} cannot read it"):
        scenes = _lif_images(library, file) if library.__name__ == "liffile" else _bioio_scenes(library, file)
        for image in scenes:
            refuse_bomb(image["shape"], np.dtype(image["dtype"]).itemsize, max_bytes, file)
            yield _as_image(image)


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
    """One letter per axis; wavelengths (λ, Λ) and the like are channels, where there is only one such axis."""
    names = ""
    for name, length in zip(dims, shape, strict=True):
        letter = name if name in AXES or length == 1 else "C"
        if letter in names:
            raise DataError(f"{file}: more axes than can be distinguished: {''.join(dims)} of lengths {shape}")
        names += letter
    return names
