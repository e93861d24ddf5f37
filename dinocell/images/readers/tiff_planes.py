"""Planes of large TIFF files, decoded strip by strip or tile by tile; uncompressed ones are left in their file."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from dinocell.images import axes as axis_rules
from dinocell.images.image import Array, reading, refuse_bomb
from dinocell.images.large_file import LazyFile, Make, from_array, worth_it
from dinocell.images.mapped import release
from dinocell.images.readers import tiff as tiffs

RELEASE_BYTES = 2**25
PALETTE, WHITE_IS_ZERO = 3, 0


def open_tiff(file: Path, axes: str | None = None) -> LazyFile | None:
    """The first image of a large TIFF file; None for small ones and for layouts that `read_image` reads whole.

    Those are palettes, min-is-white, bilevel pages, files in several parts, and pages with a whole volume.

    Raises:
        DataError: not a TIFF, axes that do not fit, or a plane of more than 64 GiB.
    """
    with reading(file, "not a readable TIFF"):
        tiff = tifffile.TiffFile(file)
    found = None
    try:
        with reading(file, "broken TIFF"):
            found = _found(tiff, file, axes)
    finally:
        if found is None:
            tiff.close()
    return found


def _found(tiff: tifffile.TiffFile, file: Path, axes: str | None) -> LazyFile | None:
    series = tiffs.real_series(tiff)[0]
    shape = tuple(int(length) for length in series.shape)
    if len(shape) < 2 or 0 in shape:
        return None  # the reader says what is wrong
    names, source = tiffs.axes_of(tiff, series)
    if axes is not None:
        names, source = axis_rules.check_given(axes, shape, str(file)), "given"
    dtype = np.dtype(series.dtype).newbyteorder("=")
    if not worth_it(shape, dtype, names, file) or not _plain(tiff, series, shape, names):
        return None
    refuse_bomb(series.keyframe.chunks, dtype.itemsize, None, file)  # one strip or tile is decoded in memory
    return LazyFile(
        shape=shape,
        axes=names,
        axes_source=source,
        dtype=dtype,
        loader=_Loader(file, tiff, series, shape, names),
        pixel_size=tiffs.pixel_size(tiff),
        channel_names=tiffs.channel_names(tiff, series, names, shape),
    )


def _plain(tiff: tifffile.TiffFile, series: Any, shape: tuple[int, ...], axes: str) -> bool:
    """True if the pages are planes Y, X (, S) or C, Y, X of this file, in the order of the leading axes."""
    page = series.keyframe
    if int(page.photometric) in (WHITE_IS_ZERO, PALETTE) and not tiff.is_imagej:
        return False
    if series.dataoffset is not None:
        return True
    inner = page.shape
    if shape[len(shape) - len(inner) :] != inner or axes[len(shape) - len(inner) :] not in ("YX", "YXS", "CYX"):
        return False
    lead = shape[: len(shape) - len(inner)]
    own = all(one is not None and one.parent is tiff for one in series.pages)
    return own and len(series.pages) == math.prod(lead) and page.imagedepth == 1


class _Loader:
    """Loader of planes; the file stays open as long as it exists."""

    def __init__(self, file: Path, tiff: tifffile.TiffFile, series: Any, shape: tuple[int, ...], axes: str) -> None:
        self.file, self.tiff, self.series, self.shape, self.axes = file, tiff, series, shape, axes
        self.lock = threading.Lock()

    def __del__(self) -> None:
        self.tiff.close()

    def __call__(self, index: tuple[int, ...], make: Make) -> Array:
        # One page at a time: the file has one position, and tifffile decodes a page in several threads itself.
        with self.lock, reading(self.file, "cannot be decoded"):
            load = self._pages if self.series.dataoffset is None else self._contiguous
            return load(index, make)

    def _contiguous(self, index: tuple[int, ...], make: Make) -> Array:
        dtype = np.dtype(self.tiff.byteorder + self.series.dtype.char)
        whole = np.memmap(self.file, dtype, "r", self.series.dataoffset, self.shape)
        plane = from_array(whole, self.axes, index)
        if dtype.isnative:
            return plane
        out = make(plane.shape, dtype.newbyteorder("="))
        for row in range(len(out)):  # rows, or channels
            out[row] = plane[row]
            release(whole)
            release(out)
        return out

    def _pages(self, index: tuple[int, ...], make: Make) -> Array:
        """Stacked axes are taken at `index`; what other leading axis is there is C."""
        inner = self.series.keyframe.shape
        lead = self.axes[: len(self.axes) - len(inner)]
        numbers = np.arange(len(self.series.pages)).reshape(self.shape[: len(lead)])
        numbers = numbers.transpose([lead.index(letter) for letter in "TZC" if letter in lead])[index]
        out = make((*numbers.shape, *inner), self.series.dtype.newbyteorder("="))
        for at in np.ndindex(*numbers.shape):
            _decode(self.series.pages[int(numbers[at])], out[at] if at else out)
        return out


def _decode(page: Any, out: Array) -> None:
    """Decode a page segment by segment into `out`, whose pages are given back as they are filled."""
    planar = out.ndim == 3 and int(page.planarconfig) == 2
    samples = out.ndim == 3 and not planar
    filled = 0
    for data, (sample, _, y, x, _), _ in page.segments(buffersize=RELEASE_BYTES):
        if data is None:  # a sparse file's empty tile
            continue
        target = (out[sample] if planar else out)[y : y + data.shape[1], x : x + data.shape[2]]
        part = data[0, : target.shape[0], : target.shape[1]]  # tiles extend beyond the image
        target[:] = part if samples else part[..., 0]
        filled += target.nbytes
        if filled > RELEASE_BYTES:
            filled = 0
            release(out)
