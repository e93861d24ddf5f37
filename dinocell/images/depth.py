"""Reduction of a Z stack to one plane, with the same `z` rules as curation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.errors import ConfigError
from dinocell.images.gray.channels import mean_depth
from dinocell.images.gray.sharpness import best_focus
from dinocell.images.image import ImageFile
from dinocell.images.large_file import LazyFile, Make
from dinocell.images.planes import Channel, iter_planes, loaded

Depth = int | str
WORDS = ("best", "focus", "max", "mean")


def check_depth(z: Depth | None) -> Depth | None:
    """Normalize a depth rule: a number to an integer, `best` to `focus`; None (each depth separately) stays.

    Raises:
        ConfigError: neither a known word nor a number from 0.
    """
    if z is None or z in WORDS:
        return "focus" if z == "best" else z
    if not isinstance(z, bool) and str(z).strip().isdecimal():
        return int(z)
    raise ConfigError(f"z: {z!r} is not known; use best (or focus), max, mean, or the number of a plane, from 0")


def choose_depth(image: ImageFile | LazyFile, z: Depth | None, channel: Channel | None = None) -> ImageFile | LazyFile:
    """Reduce the Z axis: at every time point to one depth, the same for all channels, or to their projection.

    Args:
        image: as `open_image` gives it; without a Z axis, or with `z` None, it is returned unchanged.
        z: `focus` (or `best`): the depth whose gray plane, as the network would see it, is sharpest; `max`, `mean`:
            projections of each channel; a number: that depth, from 0.
        channel: the channel that is segmented, whose focus counts.

    Raises:
        ConfigError: no such depth or channel.
    """
    z = check_depth(z)
    if z is None:
        return image
    if "Z" not in image.axes:
        _hint(image)
        return image
    if isinstance(image, LazyFile):
        return _choose_lazily(image, z, channel)
    times = image.axes.index("T") if "T" in image.axes else None
    if times is None:
        return replace(image, array=_flat(image, z, channel), axes=image.axes.replace("Z", ""))
    frame_axes = image.axes.replace("T", "")
    frames = [
        _flat(replace(image, array=np.take(image.array, number, times), axes=frame_axes), z, channel)
        for number in range(image.array.shape[times])
    ]
    return replace(image, array=np.stack(frames), axes="T" + frame_axes.replace("Z", ""))


def _choose_lazily(image: LazyFile, z: Depth, channel: Channel | None) -> LazyFile:
    """As `choose_depth`, for each time point when its plane is loaded; large depths are stored in a scratch file."""
    at = image.axes.index("Z")
    depths = image.shape[at]

    def load(index: tuple[int, ...], make: Make) -> NDArray[Any]:
        if isinstance(z, int) and z < depths:
            return image.loader((*index, z), make)
        stack = make((depths, *image.plane_shape), image.dtype)
        for depth in range(depths):
            stack[depth] = image.loader((*index, depth), make)
        frame = ImageFile(
            array=stack, axes="Z" + image.plane_axes, axes_source=image.axes_source, channel_names=image.channel_names
        )
        return _flat(frame, z, channel)

    shape = (*image.shape[:at], *image.shape[at + 1 :])
    return replace(image, shape=shape, axes=image.axes.replace("Z", ""), loader=load)


def _flat(image: ImageFile, z: Depth, channel: Channel | None) -> NDArray[Any]:
    """One time point without its Z axis."""
    axis = image.axes.index("Z")
    if z == "max":
        return np.asarray(image.array.max(axis=axis))
    if z == "mean":
        return mean_depth(image.array, axis)
    if z == "focus":
        z = best_focus([loaded(plane).gray for plane in iter_planes(image, channel)])
    depths = image.array.shape[axis]
    if not int(z) < depths:
        raise ConfigError(f"z: no depth {z}; the stack has {depths}, 0 … {depths - 1}")
    return np.asarray(np.take(image.array, int(z), axis))


def _hint(image: ImageFile | LazyFile) -> None:
    """Warn about a stack without named axes, which is read as a film although a depth was asked for."""
    if "T" in image.axes and image.axes_source.startswith("rule"):
        guess = image.axes.replace("T", "Z")
        log.warning(f"z: no Z axis in {image.axes} ({image.axes_source}); if this is a volume, pass --axes {guess}")
