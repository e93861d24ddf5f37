"""OME-Zarr (NGFF 0.1 … 0.5, Zarr 2 and 3), by region; needs zarr (the `formats` extra)."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.core.errors import DataError
from dinocell.images import axes as axis_rules
from dinocell.images.image import Array, ImageFile, reading, refuse_bomb
from dinocell.images.large_file import LazyFile, Make, worth_it
from dinocell.images.mapped import BAND_BYTES, release
from dinocell.images.units import MICRONS

MAX_CHUNKS = 10**7
"""More chunks than this are refused: each is a file."""


def read_zarr(file: Path, max_bytes: int | None) -> ImageFile:
    """The full-resolution image of an OME-Zarr folder, axes of length one dropped.

    Raises:
        DataError: zarr is not installed, not an OME-Zarr image, or too large.
    """
    _refuse_zarr_bomb(file, max_bytes, whole=True)
    lazy = _open(file, None)
    refuse_bomb(lazy.shape, lazy.dtype.itemsize, max_bytes, file)
    planes = [lazy.plane(index) for index in np.ndindex(*_stacked(lazy))]
    letters = "".join(letter for letter in "TZ" if letter in lazy.axes)
    array = np.stack(planes).reshape((*_stacked(lazy), *lazy.plane_shape))
    return ImageFile(
        array=array,
        axes=letters + lazy.plane_axes,
        axes_source=lazy.axes_source,
        pixel_size=lazy.pixel_size,
        channel_names=lazy.channel_names,
    )


def open_zarr(file: Path, axes: str | None = None) -> LazyFile | None:
    """A large OME-Zarr image, loaded plane by plane; None for small ones. Errors as `read_zarr`."""
    _refuse_zarr_bomb(file, None, whole=False)
    lazy = _open(file, axes)
    return lazy if worth_it(lazy.shape, lazy.dtype, lazy.axes, file) else None


def _open(file: Path, axes: str | None) -> LazyFile:
    zarr = _zarr(file)
    with reading(file, "no OME-Zarr image"):
        array, names, scale, channels = _image(zarr.open(str(file), mode="r"))
    keep = [i for i, name in enumerate(names) if name in "YX" or array.shape[i] > 1]
    letters = "".join(names[i] for i in keep)
    shape = tuple(int(array.shape[i]) for i in keep)
    source = "metadata"
    if axes is not None:
        letters, source = axis_rules.check_given(axes, shape, str(file)), "given"
    return LazyFile(
        shape=shape,
        axes=letters,
        axes_source=source,
        dtype=np.dtype(array.dtype).newbyteorder("="),
        loader=_Loader(file, array, keep, letters),
        pixel_size=scale,
        channel_names=channels if "C" in letters and len(channels) == shape[letters.index("C")] else (),
    )


def _refuse_zarr_bomb(folder: Path, max_bytes: int | None, *, whole: bool) -> None:
    """Refuse by what the arrays' own headers declare, before anything is opened: chunks, and the `whole` array."""
    for name in (".zarray", "zarr.json"):
        for header in (*folder.glob(name), *folder.glob(f"*/{name}")):
            try:
                content = json.loads(header.read_text(encoding="utf-8"))
                shape, chunks, dtype = _zarr_array(content)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a group, or damaged: the reader says what is wrong
            if whole:
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


def _zarr(file: Path) -> Any:
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        raise DataError(f"{file}: OME-Zarr needs zarr: pip install 'dinocell[formats]'") from error


def _image(node: Any) -> tuple[Any, str, float | None, tuple[str, ...]]:
    """Full-resolution array, its axes, µm per pixel and channel names; a bare array has none but its axes' rule."""
    if hasattr(node, "shape"):
        return node, axis_rules.guess_axes(tuple(node.shape))[0], None, ()
    attributes: Mapping[str, Any] = dict(node.attrs)
    attributes = attributes.get("ome", attributes)
    if "multiscales" not in attributes:
        if "plate" in attributes:
            raise DataError(f"{node.store_path}: a plate; name the images in it, e.g. PLATE.zarr/A/1/0")
        return _image(node["0"])  # bioformats2raw puts its images in numbered groups
    scales = attributes["multiscales"][0]
    level = scales["datasets"][0]
    array = node[level["path"]]
    described = scales.get("axes") or list("tczyx")[-len(array.shape) :]
    axes = [entry if isinstance(entry, str) else entry["name"] for entry in described]
    units = {e["name"].upper(): e.get("unit", "micrometer") for e in described if not isinstance(e, str)}
    names = axis_rules.resolve_unknown("".join(name[0].upper() for name in axes), tuple(array.shape))[0]
    steps = [t["scale"] for t in level.get("coordinateTransformations", []) if t.get("type") == "scale"]
    factor = MICRONS.get(units.get("X", ""))
    scale = float(steps[0][names.index("X")]) * factor if steps and factor else None
    channels = attributes.get("omero", {}).get("channels", [])
    return array, names, scale, tuple(str(entry.get("label", "")) for entry in channels)


def _stacked(lazy: LazyFile) -> tuple[int, ...]:
    return tuple(lazy.shape[lazy.axes.index(letter)] for letter in "TZ" if letter in lazy.axes)


class _Loader:
    """Loads planes of an array by rows of chunks."""

    def __init__(self, file: Path, array: Any, keep: list[int], axes: str) -> None:
        self.file, self.array, self.keep, self.axes = file, array, keep, axes

    def __call__(self, index: tuple[int, ...], make: Make) -> Array:
        stacked = [letter for letter in "TZ" if letter in self.axes]
        letters = [letter for letter in "CYXS" if letter in self.axes]
        shape = tuple(int(self.array.shape[self.keep[self.axes.index(letter)]]) for letter in letters)
        out = make(shape, np.dtype(self.array.dtype).newbyteorder("="))
        row = letters.index("Y")
        step = self._rows(letters, shape)
        with reading(self.file, "cannot be decoded"):
            for top in range(0, shape[row], step):
                take: list[Any] = [0] * self.array.ndim
                for position, letter in zip(self.keep, self.axes, strict=True):
                    take[position] = index[stacked.index(letter)] if letter in "TZ" else slice(None)
                take[self.keep[self.axes.index("Y")]] = slice(top, top + step)
                part = np.asarray(self.array[tuple(take)])
                left = [letter for letter in self.axes if letter not in "TZ"]
                part = part.transpose([left.index(letter) for letter in letters])
                out[(slice(None),) * row + (slice(top, top + step),)] = part
                release(out)
        return out

    def _rows(self, letters: list[str], shape: tuple[int, ...]) -> int:
        """Rows read at a time: whole chunks, about `BAND_BYTES`."""
        chunk = int(self.array.chunks[self.keep[self.axes.index("Y")]])
        row_bytes = int(np.prod(shape)) // shape[letters.index("Y")] * self.array.dtype.itemsize
        return max(1, BAND_BYTES // max(1, row_bytes) // chunk) * chunk
