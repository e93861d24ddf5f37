"""One image in memory: its values, what each axis means, and how that is known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dinocell.core.errors import ConfigError, DataError, DinoCellError, first_line
from dinocell.images import axes as axis_rules

Array = npt.NDArray[Any]
Plane = npt.NDArray[Any]

LIMIT = "DINOCELL_MAX_GIB"
"""Environment variable: largest decoded array (GiB) that is read, however small its file is."""
DEFAULT_GIB = 8.0
MAX_EXPANSION = 5000
"""Largest plausible decompression ratio (deflate, LZW and PackBits stay below it, even for blank images)."""
SMALL = 2**26
"""Bytes that are decoded whatever the expansion."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image, or one series of a file with several.

    Attributes:
        array: values and dtype of the file.
        axes: one letter an array axis out of TZCYXS.
        axes_source: "metadata", "given", or the rule in words.
        pixel_size: µm per pixel, None when the file does not say.
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.array.shape


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


def refuse_bomb(shape: Sequence[int], itemsize: int, max_bytes: int | None, where: Path) -> None:
    """Refuse an array by what its header declares, before it is allocated.

    Args:
        shape: declared.
        itemsize: bytes a value.
        max_bytes: the limit; None takes `DINOCELL_MAX_GIB`, or 8 GiB.
        where: the file, or the folder of an OME-Zarr, whose size on disk counts too.

    Raises:
        DataError: more than the limit, or more than any codec's expansion of the bytes that are there.
        ConfigError: `DINOCELL_MAX_GIB` is not a number above 0.
    """
    given = _given_limit()
    limit = max_bytes or given or int(DEFAULT_GIB * 2**30)
    size = math.prod(int(length) for length in shape) * itemsize
    declared = f"{where}: decodes to {size / 2**30:.1f} GiB {tuple(shape)}"
    remedy = f"if the file is sound, set {LIMIT} to as many GiB as may be read"
    if size > limit:
        raise DataError(f"{declared}, more than the limit of {limit / 2**30:.1f} GiB; {remedy}")
    if size > SMALL and given is None and not _stored_at_least(where, size // MAX_EXPANSION):
        raise DataError(f"{declared} from a file of less than 1/{MAX_EXPANSION} of that; {remedy}")


def _given_limit() -> int | None:
    text = os.environ.get(LIMIT, "")
    if not text:
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 < gib < math.inf:
        raise ConfigError(f"{LIMIT}: a number of GiB above 0, got {text!r}")
    return int(gib * 2**30)


def _stored_at_least(where: Path, size: int) -> bool:
    """True if a file, or the files of a folder together, have at least so many bytes."""
    found = 0
    for file in where.rglob("*") if where.is_dir() else (where,):
        found += file.stat().st_size
        if found >= size:
            return True
    return False


@contextmanager
def reading(where: Path, problem: str) -> Iterator[None]:
    """Decoders raise many kinds of errors on broken files: all become one DataError in one line."""
    try:
        yield
    except DinoCellError as error:
        if str(where) in str(error) or not isinstance(error, DataError):
            raise
        raise DataError(f"{where}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{where}: needs more memory than there is: {first_line(error)}") from error
    except Exception as error:
        raise DataError(f"{where}: {problem}: {first_line(error)}") from error
