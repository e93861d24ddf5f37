"""One image in memory: its values, what each axis means, and how that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dinocell.data import axes as axis_rules
from dinocell.errors import DataError

Array = npt.NDArray[Any]
Plane = npt.NDArray[Any]

MAX_BYTES = 8 * 2**30
"""Largest decoded array (bytes) that is read; a header that promises more is refused before allocation."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image, or one series of a file that holds several.

    Attributes:
        array: values and dtype of the file.
        axes: one letter an array axis out of TZCYXS.
        axes_source: "metadata", "given", or the rule in words.
        pixel_size: µm a pixel, None when the file does not say.
        channel_names: as many as the C axis is long, or empty.
        series: name of the series in a file of several, else empty.
        t_step: 1, or k where only every k-th time point was read.
    """

    array: Array
    axes: str
    axes_source: str
    pixel_size: float | None = None
    channel_names: tuple[str, ...] = ()
    series: str = ""
    t_step: int = 1


def override_axes(image: ImageFile, axes: str | None, where: Path) -> ImageFile:
    """The same image with the caller's axes, if any."""
    if axes is None:
        return image
    checked = axis_rules.check_given(axes, image.array.shape, str(where))
    names = image.channel_names if "C" in checked else ()
    return replace(image, axes=checked, axes_source="given", channel_names=names)


def every_nth_frame(image: ImageFile, t_step: int) -> ImageFile:
    """Every `t_step`-th time point, from the first on."""
    if t_step == 1 or "T" not in image.axes:
        return image
    cut = (slice(None),) * image.axes.index("T") + (slice(None, None, t_step),)
    return replace(image, array=image.array[cut], t_step=t_step)


def refuse_bomb(shape: Sequence[int], itemsize: int, max_bytes: int, where: Path) -> None:
    """Raise DataError when an array of this shape would take more than `max_bytes`."""
    size = math.prod(int(length) for length in shape) * itemsize
    if size > max_bytes:
        limit = f"the limit of {max_bytes / 2**30:.1f} GiB"
        raise DataError(f"{where}: decodes to {size / 2**30:.1f} GiB {tuple(shape)}, more than {limit}")
