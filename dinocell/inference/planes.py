"""What is segmented: the planes of an array or file, each with its gray picture and its measured channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.data import axes as axis_rules
from dinocell.data.image import ImageFile
from dinocell.data.io import read_image, to_gray
from dinocell.errors import ConfigError, DataError
from dinocell.paths import local_path

Image = str | os.PathLike[str] | NDArray[Any] | ImageFile
Channel = int | str


@dataclass(frozen=True, kw_only=True)
class InputPlane:
    """One plane to segment.

    Attributes:
        name: "" for a plain image, "t003", "z012" or "t003_z012" for a plane of a stack.
        gray: (H, W), what the network sees, before preprocessing.
        display: (H, W) or (H, W, 3), what overlays are drawn on.
        channels: name → (H, W), what intensities are measured on.
        pixel_size: µm per pixel, None if not known.
    """

    name: str
    gray: NDArray[Any]
    display: NDArray[Any]
    channels: dict[str, NDArray[Any]]
    pixel_size: float | None = None


def open_image(image: Image, axes: str | None = None) -> ImageFile:
    """A path, an array or an `ImageFile` as an `ImageFile`; `axes` (letters out of TZCYXS) overrides what is guessed.

    Raises:
        DataError: unreadable, not numbers, empty, or axes that do not fit.
    """
    if isinstance(image, (str, os.PathLike)):
        found = read_image(local_path(os.fspath(image)), axes=axes)
    elif isinstance(image, ImageFile):
        found = image
    else:
        array = np.asarray(image)
        names, source = (axis_rules.check_given(axes, array.shape, "array"), "given") if axes else (None, "")
        if names is None:
            names, source = axis_rules.guess_axes(array.shape)
        found = ImageFile(array=array, axes=names, axes_source=source)
    if found.array.dtype.kind not in "buif":
        raise DataError(f"an image holds numbers, this array holds {found.array.dtype}")
    if found.array.size == 0:
        raise DataError(f"the image is empty: shape {found.array.shape}")
    return found


def iter_planes(image: ImageFile, channel: Channel | None = None) -> Iterator[InputPlane]:
    """Every plane along time and depth; without these axes, the one plane of the image.

    Args:
        image: as `open_image` gives it.
        channel: index from 0, or name, of the channel to segment; default: the gray reading of all channels.

    Raises:
        ConfigError: there is no such channel.
    """
    stacked = [letter for letter in "TZ" if letter in image.axes]
    rest = "".join(letter for letter in "CYXS" if letter in image.axes)
    array = image.array.transpose([image.axes.index(letter) for letter in (*stacked, *rest)])
    lengths = array.shape[: len(stacked)]
    for index in np.ndindex(*lengths):
        name = "_".join(
            f"{letter.lower()}{number:03d}"
            for letter, number, length in zip(stacked, index, lengths, strict=True)
            if length > 1
        )
        yield _plane(name, array[index], rest, image, channel)


def count_planes(image: ImageFile) -> int:
    """Number of planes that `iter_planes` gives."""
    return int(
        np.prod([length for letter, length in zip(image.axes, image.array.shape, strict=True) if letter in "TZ"])
    )


def _plane(name: str, array: NDArray[Any], axes: str, image: ImageFile, channel: Channel | None) -> InputPlane:
    channels = _channels(array, axes, image.channel_names)
    if channel is not None:
        gray = channels[_pick(channel, list(channels))]
    else:
        gray = to_gray(array, axes) if len(axes) > 2 else array
    display = array[..., :3] if axes == "YXS" and array.shape[2] >= 3 else gray
    return InputPlane(name=name, gray=gray, display=display, channels=channels, pixel_size=image.pixel_size)


def _channels(array: NDArray[Any], axes: str, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Measured channels: named C planes, red/green/blue of colour pictures, or one gray plane; alpha is left out."""
    if "S" in axes:
        colour = np.moveaxis(array, axes.index("S"), 0)
        colour = colour[:-1] if len(colour) in (2, 4) else colour
        if "C" in axes:
            return {f"c{c}_s{s}": plane[c] for s, plane in enumerate(colour) for c in range(array.shape[0])}
        if len(colour) == 1 or all(np.array_equal(colour[0], other) for other in colour[1:]):
            return {"gray": colour[0]}
        return dict(zip(("red", "green", "blue"), colour, strict=False))
    if "C" in axes:
        unique = len(set(names)) == len(array)
        keys = names if unique else tuple(f"c{number}" for number in range(len(array)))
        return dict(zip(keys, array, strict=True)) if len(array) > 1 else {"gray": array[0]}
    return {"gray": array}


def _pick(channel: Channel, names: list[str]) -> str:
    if isinstance(channel, str) and channel in names:
        return channel
    if (isinstance(channel, int) or channel.isdecimal()) and 0 <= int(channel) < len(names):
        return names[int(channel)]
    raise ConfigError(f"channel: no {channel!r}; the image has {', '.join(f'{i} = {n}' for i, n in enumerate(names))}")
