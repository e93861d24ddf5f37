"""TIFF in its many forms: OME, ImageJ, STK, LSM, shaped, plain pages, palettes, BigTIFF, any compression."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from dinocell.core.errors import DataError
from dinocell.images import axes as axis_rules
from dinocell.images.image import Array, ImageFile, every_nth_frame, override_axes, reading, refuse_bomb
from dinocell.images.units import MICRONS

# tifffile reports every oddity of a file through logging, which would litter the terminal; what matters is raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

TIFFS = (".tif", ".tiff", ".stk", ".lsm", ".btf", ".tf8")
MIN_SERIES_FRACTION = 0.5
"""Later series with sides below this fraction of the first one's are thumbnails, labels or pyramid levels."""
MAX_PLANES = 10**7
"""More planes than this are refused: the index alone would exhaust memory."""


def read_tiff(file: Path, axes: str | None, t_step: int, max_bytes: int | None) -> Iterator[ImageFile]:
    """Every series of a TIFF file; arguments and errors as `read_series`."""
    with reading(file, "not a readable TIFF"):
        tiff = tifffile.TiffFile(file)
    with tiff:
        with reading(file, "broken TIFF"):
            series = real_series(tiff)
        for number, one in enumerate(series):
            with reading(file, "cannot be decoded"):
                image = _read_one(tiff, one, file, axes, t_step, max_bytes)
            name = f"s{number}" if len(series) > 1 else ""
            yield replace(image, series=name)


def real_series(tiff: tifffile.TiffFile) -> list[Any]:
    """Series of a file that are images, without thumbnails."""
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", tiff.ome_metadata or "" if tiff.is_ome else ""):
        planes = math.prod(int(size) for size in re.findall(r'\bSize[TZC]="(\d+)"', pixels))
        if planes > MAX_PLANES:
            raise ValueError(f"its OME metadata declare {planes} planes, more than {MAX_PLANES}")
    series = list(tiff.series)
    if not series:
        raise ValueError("no image inside")
    sides = [_sides(one) for one in series]
    least = (sides[0][0] * MIN_SERIES_FRACTION, sides[0][1] * MIN_SERIES_FRACTION)
    return [one for one, (h, w) in zip(series, sides, strict=True) if h >= least[0] and w >= least[1]]


def _sides(series: Any) -> tuple[int, int]:
    page = series.keyframe
    return int(page.imagelength), int(page.imagewidth)


def _read_one(
    tiff: tifffile.TiffFile, series: Any, file: Path, axes: str | None, t_step: int, max_bytes: int | None
) -> ImageFile:
    shape = tuple(int(length) for length in series.shape)
    if len(shape) < 2 or 0 in shape:
        raise DataError(f"{file}: contains no image: its first one has shape {shape}")
    names, source = axes_of(tiff, series)
    if axes is not None:
        names, source = axis_rules.check_given(axes, shape, str(file)), "given"
    step = t_step if names.startswith("T") else 1
    refuse_bomb((-(-shape[0] // step), *shape[1:]), series.dtype.itemsize, max_bytes, file)
    refuse_bomb(series.keyframe.chunks, series.dtype.itemsize, max_bytes, file)  # a tile may be larger than the image
    array = _decode(series, shape, step)
    image = ImageFile(
        t_step=step,
        array=array,
        axes=names,
        axes_source=source,
        pixel_size=pixel_size(tiff),
        channel_names=channel_names(tiff, series, names, shape),
    )
    image = _as_photographed(tiff, series, image)
    if axes is not None and image.array.ndim == array.ndim:
        image = override_axes(image, axes, file)
    return image if step > 1 else every_nth_frame(image, t_step)


def _decode(series: Any, shape: tuple[int, ...], step: int) -> Array:
    """All of a series, or, where one page is one time point, only every `step`-th page."""
    if step > 1 and len(series.pages) == shape[0] and all(page is not None for page in series.pages):
        pages = [page.asarray() for page in series.pages[::step]]
        return np.stack([page.reshape(shape[1:]) for page in pages])
    array: Array = np.asarray(series.asarray())
    return array[::step].reshape((-(-shape[0] // step), *shape[1:]))


def axes_of(tiff: tifffile.TiffFile, series: Any) -> tuple[str, str]:
    """Axis letters of a series, and where they come from."""
    shape = tuple(int(length) for length in series.shape)
    axes = str(series.axes)
    page = series.keyframe
    named = bool(tiff.shaped_metadata and any("axes" in entry for entry in tiff.shaped_metadata))
    if series.kind == "shaped" and not named and "Q" in axes:
        plane = 3 if axes.endswith("YXS") else 2
        if plane == 3 or len(shape) == 2:
            return axis_rules.resolve_unknown(axes, shape)
        return axis_rules.guess_axes(shape)
    if axes.endswith("SYX") and page.planarconfig == 2:
        axes = axes.replace("S", "C") if "C" not in axes else axes
    return axis_rules.resolve_unknown(axes, shape)


def _as_photographed(tiff: tifffile.TiffFile, series: Any, image: ImageFile) -> ImageFile:
    """Decode palettes and invert min-is-white images."""
    page = series.keyframe
    photometric = int(page.photometric)
    if photometric == 3 and not tiff.is_imagej and page.colormap is not None:  # ImageJ's are display tables only
        colours = np.asarray(page.colormap).T  # [256, 3]
        if not (colours.size and colours.max() > 255):
            colours = colours * 257
        table = (colours >> 8).astype(np.uint8)
        if image.array.max() >= len(table):
            raise DataError(f"value {image.array.max()} in an image with a palette of {len(table)} colours")
        return replace(image, array=table[image.array], axes=image.axes + "S")
    if photometric == 0 and image.array.dtype.kind in "bu":
        top = 1 if image.array.dtype.kind == "b" else np.iinfo(image.array.dtype).max
        flipped = (top - image.array.astype(np.uint32)).astype(np.uint8 if top == 1 else image.array.dtype)
        return replace(image, array=flipped)
    if image.array.dtype.kind == "b":
        return replace(image, array=image.array.astype(np.uint8))
    return image


def pixel_size(tiff: tifffile.TiffFile) -> float | None:
    """µm per pixel from OME or ImageJ metadata; plain resolution tags are often print defaults, so they are ignored."""
    if tiff.is_ome and tiff.ome_metadata:
        value = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', tiff.ome_metadata)
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', tiff.ome_metadata)
        factor = MICRONS.get(unit.group(1) if unit else "µm")
        if value and factor:
            return float(value.group(1)) * factor
        return None
    if tiff.is_imagej and tiff.imagej_metadata:
        unit_name = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ")
        factor = MICRONS.get(unit_name)
        tag = tiff.pages[0].tags.get("XResolution")  # type: ignore[union-attr]
        if factor and tag is not None and tag.value[0]:
            return float(tag.value[1] / tag.value[0]) * factor
    return None


def channel_names(tiff: tifffile.TiffFile, series: Any, axes: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names that OME metadata give to the channels, or nothing."""
    if "C" not in axes or not (tiff.is_ome and tiff.ome_metadata):
        return ()
    images = re.findall(r"<(?:\w+:)?Image\b.*?</(?:\w+:)?Image>", tiff.ome_metadata, re.DOTALL)
    number = next((number for number, one in enumerate(tiff.series) if one is series), 0)
    described = images[number] if number < len(images) else ""
    names = re.findall(r'<(?:\w+:)?Channel\b[^>]*?\bName="([^"]*)"', described)
    return tuple(names) if len(names) == shape[axes.index("C")] else ()
