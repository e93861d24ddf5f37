"""Planes of an array or file, each with its gray plane and its measured channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.errors import ConfigError, DataError
from dinocell.core.files import local_path
from dinocell.images import axes as axis_rules
from dinocell.images.gray.bands import row_bands, to_gray_large
from dinocell.images.gray.channels import to_gray
from dinocell.images.image import ImageFile
from dinocell.images.large_file import LazyFile
from dinocell.images.mapped import release
from dinocell.images.read import open_lazily, read_image

Image = str | os.PathLike[str] | NDArray[Any] | ImageFile | LazyFile
Channel = int | str


@dataclass(frozen=True, kw_only=True)
class InputPlane:
    """One plane to segment.

    Attributes:
        name: "" for a plain image, "t003", "z012" or "t003_z012" for a plane of a stack.
        gray: (H, W), the network's input before preprocessing.
        display: (H, W) or (H, W, 3), the ground of overlays.
        channels: name → (H, W), for intensities.
        pixel_size: µm per pixel, None if not known.
    """

    name: str
    gray: NDArray[Any]
    display: NDArray[Any]
    channels: dict[str, NDArray[Any]]
    pixel_size: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), px."""
        return self.gray.shape[0], self.gray.shape[1]


@dataclass(frozen=True, kw_only=True)
class WaitingPlane:
    """A plane not loaded yet, because it is large or one of many.

    Attributes:
        name: as `InputPlane.name`.
        size: (height, width), px.
        image: the file.
        index: position along T and Z.
        channel: the channel to segment.
    """

    name: str
    size: tuple[int, int]
    image: LazyFile
    index: tuple[int, ...]
    channel: Channel | None

    def load(self, folder: Path | None = None) -> InputPlane:
        """Load the plane; arrays too large for memory are stored in scratch files of `folder`.

        Raises:
            DataError: damaged, or no room; ConfigError: no such channel.
        """
        array = self.image.plane(self.index, folder)
        return _plane(self.name, array, self.image.plane_axes, self.image, self.channel, folder)


Plane = InputPlane | WaitingPlane


def loaded(plane: Plane, folder: Path | None = None) -> InputPlane:
    """Load a plane, if it is still in its file."""
    return plane.load(folder) if isinstance(plane, WaitingPlane) else plane


def open_image(image: Image, axes: str | None = None) -> ImageFile | LazyFile:
    """Open a path, an array or an opened file; `axes` (letters out of TZCYXS) overrides what is guessed.

    Large TIFF, OME-Zarr and NPY files are not read but opened as `LazyFile`.

    Raises:
        DataError: unreadable, not numbers, empty, or axes that do not fit.
    """
    if isinstance(image, (str, os.PathLike)):
        file = local_path(os.fspath(image))
        lazy = open_lazily(file, axes=axes)
        if lazy is not None:
            return lazy
        found = read_image(file, axes=axes)
    elif isinstance(image, LazyFile):
        return image
    elif isinstance(image, ImageFile):
        found = image
    else:
        array = np.asarray(image)
        names, source = (axis_rules.check_given(axes, array.shape, "array"), "given") if axes else (None, "")
        if names is None:
            names, source = axis_rules.guess_axes(array.shape)
        found = ImageFile(array=array, axes=names, axes_source=source)
    if found.array.dtype.kind not in "buif":
        raise DataError(f"image arrays must be numeric, got dtype {found.array.dtype}")
    if found.array.size == 0:
        raise DataError(f"the image is empty: shape {found.array.shape}")
    return found


def iter_planes(image: ImageFile | LazyFile, channel: Channel | None = None) -> Iterator[Plane]:
    """Every plane along time and depth; without these axes, the one plane of the image.

    Args:
        image: as `open_image` gives it; planes of a `LazyFile` come as `WaitingPlane`.
        channel: index from 0, or name, of the channel to segment; default: the gray reading of all channels.

    Raises:
        ConfigError: there is no such channel.
    """
    stacked = [letter for letter in "TZ" if letter in image.axes]
    rest = "".join(letter for letter in "CYXS" if letter in image.axes)
    lengths = tuple(image.shape[image.axes.index(letter)] for letter in stacked)
    if isinstance(image, LazyFile):
        size = (image.shape[image.axes.index("Y")], image.shape[image.axes.index("X")])
        take: Any = partial(WaitingPlane, size=size, image=image, channel=channel)
    else:
        array = image.array.transpose([image.axes.index(letter) for letter in (*stacked, *rest)])

        def take(name: str, index: tuple[int, ...]) -> Plane:
            return _plane(name, array[index], rest, image, channel, None)

    for index in np.ndindex(*lengths):
        name = "_".join(
            f"{letter.lower()}{number:03d}"
            for letter, number, length in zip(stacked, index, lengths, strict=True)
            if length > 1
        )
        yield take(name=name, index=index)


def count_planes(image: ImageFile | LazyFile) -> int:
    """Number of planes that `iter_planes` gives."""
    return int(np.prod([length for letter, length in zip(image.axes, image.shape, strict=True) if letter in "TZ"]))


def _plane(
    name: str,
    array: NDArray[Any],
    axes: str,
    image: ImageFile | LazyFile,
    channel: Channel | None,
    folder: Path | None,
) -> InputPlane:
    channels = _channels(array, axes, image.channel_names)
    if channel is not None:
        gray = channels[_pick(channel, list(channels))]
    elif isinstance(array, np.memmap):
        gray = to_gray_large(array, axes, folder)
    else:
        gray = to_gray(array, axes) if len(axes) > 2 else array
    coloured = axes == "YXS" and len(channels) >= 3  # three equal samples are a gray image: shown with its contrast
    display = array[..., :3] if coloured else gray
    return InputPlane(name=name, gray=gray, display=display, channels=channels, pixel_size=image.pixel_size)


def _channels(array: NDArray[Any], axes: str, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Measured channels: named C planes, red/green/blue of colour images, or one gray plane; alpha is left out."""
    if "S" in axes:
        colour = np.moveaxis(array, axes.index("S"), 0)
        colour = colour[:-1] if len(colour) in (2, 4) else colour
        if "C" in axes:
            return {f"c{c}_s{s}": plane[c] for s, plane in enumerate(colour) for c in range(array.shape[0])}
        if len(colour) == 1 or all(_equal(colour[0], other) for other in colour[1:]):
            return {"gray": colour[0]}
        return dict(zip(("red", "green", "blue"), colour, strict=False))
    if "C" in axes:
        unique = len(set(names)) == len(array)
        keys = names if unique else tuple(f"c{number}" for number in range(len(array)))
        return dict(zip(keys, array, strict=True)) if len(array) > 1 else {"gray": array[0]}
    return {"gray": array}


def _equal(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """True if two planes are equal; unequal ones mostly differ in their first rows, and the rest is not read."""
    for rows in row_bands(first):
        equal = np.array_equal(first[rows], second[rows])
        release(first)
        if not equal:
            return False
    return True


def _pick(channel: Channel, names: list[str]) -> str:
    if isinstance(channel, str) and channel in names:
        return channel
    if (isinstance(channel, int) or channel.isdecimal()) and 0 <= int(channel) < len(names):
        return names[int(channel)]
    raise ConfigError(f"channel: no {channel!r}; the image has {', '.join(f'{i} = {n}' for i, n in enumerate(names))}")
