"""CZI, ND2, LIF and OME-Zarr through bioio, which the `formats` extra installs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.data.image import ImageFile, refuse_bomb
from dinocell.errors import DataError

BIOIO = (".czi", ".nd2", ".lif", ".zarr")


def read_bioio(file: Path, max_bytes: int) -> Iterator[ImageFile]:
    """Every scene of a file, as TCZYX (or TCZYXS) with axes of length one dropped.

    Raises:
        DataError: bioio or its reader is not installed, unreadable, or too large.
    """
    try:
        bioio: Any = importlib.import_module("bioio")
    except ImportError as error:
        raise DataError(f"{file}: reading {file.suffix} needs bioio: pip install 'dinocell[formats]'") from error
    try:
        reader = bioio.BioImage(file)
        scenes = list(reader.scenes)
    except Exception as error:  # each bioio plugin raises its own kinds
        raise DataError(f"{file}: bioio cannot read it: {' '.join(str(error).split())[:200]}") from error
    for number, scene in enumerate(scenes):
        reader.set_scene(scene)
        names = str(reader.dims.order)
        refuse_bomb(reader.shape, np.dtype(reader.dtype).itemsize, max_bytes, file)
        array = np.asarray(reader.get_image_data(names))
        keep = [i for i, name in enumerate(names) if name in "YX" or array.shape[i] > 1]
        axes = "".join(names[i] for i in keep)
        channels = tuple(str(name) for name in reader.channel_names or ())
        yield ImageFile(
            array=array.reshape([array.shape[i] for i in keep]),
            axes=axes,
            axes_source="metadata",
            pixel_size=reader.physical_pixel_sizes.X,
            channel_names=channels if "C" in axes else (),
            series=f"s{number}" if len(scenes) > 1 else "",
        )
