"""Gray planes of an image of any axes, and the contrast rules that combine channels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.images import axes as axis_rules
from dinocell.images.gray.contrast import HIGH_PERCENTILE, LOW_PERCENTILE, stretch
from dinocell.images.gray.sharpness import best_focus
from dinocell.images.image import Array, ImageFile, Plane

DepthRule = Literal["focus", "max", "mean"]
ColourRule = Literal["auto", "luma", "channels"]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601 weights of R, G, B."""
TRANSMITTED = re.compile(r"phase|\bbf\b|bright|trans|\bdic\b", re.IGNORECASE)
"""Names that microscopes give to channels of transmitted light."""
DARK_BACKGROUND = 0.4
"""A colour image whose median brightness is below this fraction of its range shows fluorophores, not a stain."""
EQUAL_TOLERANCE = 2 / 255
"""Colour channels that nowhere differ by more than this fraction of the range are one gray image."""


def planes(
    image: ImageFile, *, z: DepthRule = "focus", colour: ColourRule = "auto", combined: bool = True
) -> Iterator[tuple[str, Plane]]:
    """Named gray planes (H, W) of an image: each time point, each channel, and the channels combined (paper §3.1.1).

    Depth becomes one plane: the best focused one, the maximum or the mean. Colour (S axis) images give one plane when
    their channels are equal; under "auto" otherwise the luma of a bright image (a stain or a camera) or the
    separate channels of a dark one (fluorophores). Alpha is dropped.

    Args:
        image: any axes.
        z: how a Z axis becomes one plane.
        colour: "luma" or "channels" force one reading of S axes.
        combined: also give the mean of the stretched channels where there are two or more.

    Yields:
        A name such as "gray", "luma", "c0", "c1", "combined", "t005_c0", and a plane of the image's dtype
        (uint16 for "combined").
    """
    array, axes = image.array, image.axes
    order = [axes.index(letter) for letter in axis_rules.AXES if letter in axes]
    array = array.transpose(order)
    axes = "".join(letter for letter in axis_rules.AXES if letter in axes)
    frames = array if "T" in axes else array[None]
    axes = axes.replace("T", "")
    for number, frame in enumerate(frames):
        prefix = f"t{number * image.t_step:03d}_" if len(frames) > 1 else ""
        for name, plane in _channels(frame, axes, z, colour, combined):
            yield prefix + name, plane


def _channels(frame: Array, axes: str, z: DepthRule, colour: ColourRule, combined: bool) -> Iterator[tuple[str, Plane]]:
    """Planes of one time point with axes out of ZCYXS, in that order."""
    if "S" in axes:
        samples = np.moveaxis(frame, -1, 0)  # [S, …, Y, X]
        axes = axes.replace("S", "")
        if "C" in axes:  # a stack of colour images: each C is read as its own image
            for number in range(frame.shape[axes.index("C")]):
                picture = np.take(samples, number, axis=1 + axes.index("C"))
                rest = axes.replace("C", "")
                yield from ((f"c{number}_{n}", p) for n, p in _colour(picture, rest, z, colour, combined))
            return
        yield from _colour(samples, axes, z, colour, combined)
        return
    if "C" not in axes:
        yield "gray", flatten_depth(frame, axes, z)
        return
    where = axes.index("C")
    rest = axes.replace("C", "")
    separate = [flatten_depth(np.take(frame, c, axis=where), rest, z) for c in range(frame.shape[where])]
    yield from _separate(separate, combined)


def _separate(channels: list[Plane], combined: bool) -> Iterator[tuple[str, Plane]]:
    if len(channels) == 1:
        yield "gray", channels[0]
        return
    for number, plane in enumerate(channels):
        yield f"c{number}", plane
    if combined:
        yield "combined", combine(channels)


def _colour(samples: Array, axes: str, z: DepthRule, colour: ColourRule, combined: bool) -> Iterator[tuple[str, Plane]]:
    """Planes of one colour image (S, [Z,] Y, X)."""
    channels = [flatten_depth(sample, axes, z) for sample in samples]
    if len(channels) in (2, 4):
        channels = channels[:-1]  # alpha
    if len(channels) == 1 or channels_equal([plane[::16, ::16] for plane in channels]):  # a few pixels suffice for most
        channels = [np.ascontiguousarray(plane) for plane in channels]
        if len(channels) == 1 or channels_equal(channels):
            yield "gray", channels[0]
            return
    if colour == "luma" or (colour == "auto" and not dark_background(channels)):
        yield "luma", luma(np.stack(channels, axis=-1) if "Z" in axes else np.moveaxis(samples[:3], 0, -1))
    else:
        yield from _separate([np.ascontiguousarray(plane) for plane in channels], combined)


def flatten_depth(stack: Array, axes: str, z: DepthRule) -> Plane:
    """(Y, X) from (Y, X) or (Z, Y, X)."""
    if "Z" not in axes:
        return stack
    if z == "focus":
        return stack[best_focus(stack)]
    return np.asarray(stack.max(axis=0)) if z == "max" else mean_depth(stack, 0)


def mean_depth(stack: Array, axis: int) -> Array:
    """Mean along an axis, rounded to the dtype of integers; float32 of other floats, float64 stays."""
    mean = stack.mean(axis=axis, dtype=np.float64)
    if stack.dtype.kind in "bui":
        return np.rint(mean).astype(stack.dtype)
    return np.asarray(mean.astype(stack.dtype if stack.dtype == np.float64 else np.float32))


def value_range(plane: Plane) -> float:
    """Full scale of a dtype; of float planes, the span of the finite values."""
    if plane.dtype.kind in "ui":
        return float(np.iinfo(plane.dtype).max)
    finite = plane[np.isfinite(plane)]
    return float(finite.max() - finite.min()) if finite.size else 0.0


def channels_equal(channels: list[Plane]) -> bool:
    """True if the planes of a colour image are one gray image."""
    first = channels[0]
    tolerance = EQUAL_TOLERANCE * value_range(first) if first.dtype == np.uint8 else 0
    return all(_close(first, other, tolerance) for other in channels[1:])


def _close(first: Plane, other: Plane, tolerance: float) -> bool:
    if np.array_equal(first, other):
        return True
    if first.dtype.kind in "ui":
        difference = np.maximum(first, other) - np.minimum(first, other)
    else:
        difference = np.nan_to_num(np.abs(first - other))
    return bool(difference.max() <= tolerance)


def dark_background(channels: list[Plane]) -> bool:
    """True if the median pixel is dark in every channel, on the scale from 0 to the image's brightest value."""
    median, maximum = (np.nanmedian, np.nanmax) if channels[0].dtype.kind == "f" else (np.median, np.max)
    medians = []
    for plane in channels:
        medians.append(float(median(plane[::8, ::8])))
        if plane.dtype.kind == "u" and medians[-1] >= DARK_BACKGROUND * value_range(plane):
            return False  # whatever the brightest value is
    return max(medians) < DARK_BACKGROUND * max(float(maximum(plane)) for plane in channels)


def luma(picture: Array) -> Plane:
    """BT.601 luma (H, W) of an image (H, W, 3): rounded to the dtype for uint8 and uint16, else float32."""
    if picture.dtype in (np.uint8, np.uint16):
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))
    total: npt.NDArray[np.float32] = picture[..., 0] * LUMA[0]
    for sample, weight in enumerate(LUMA[1:], start=1):
        total += picture[..., sample] * weight
    return total.astype(np.float32, copy=False)


def combine(channels: list[Plane]) -> npt.NDArray[np.uint16]:
    """Mean (H, W) uint16 of channels, each stretched from its `LOW_PERCENTILE` … `HIGH_PERCENTILE` to 0 … 65,535.

    A constant channel adds nothing.
    """
    total = np.zeros(channels[0].shape, dtype=np.float32)
    used = 0
    for plane in channels:
        unit = stretch(plane, LOW_PERCENTILE, HIGH_PERCENTILE)
        if unit is not None:
            total += unit
            used += 1
    total *= np.float32(65_535 / max(used, 1))
    return np.rint(total, out=total).astype(np.uint16)


def to_gray(image: ImageFile | Array, axes: str | None = None) -> Plane:
    """Gray plane (H, W) of an image, the input of segmentation and fine-tuning.

    A bright colour image becomes luma, a dark one (fluorophores) and C are combined as `combine` does, equal
    channels collapse, Z gives the best focused plane, T the first frame. The dtype is that of
    `planes`.

    Args:
        image: an `ImageFile`, or an array, whose axes are then `axes` or guessed by `axes.guess_axes`.
        axes: letters out of TZCYXS.
    """
    if not isinstance(image, ImageFile):
        names = axis_rules.check_given(axes, image.shape, "array") if axes else axis_rules.guess_axes(image.shape)[0]
        image = ImageFile(array=image, axes=names, axes_source="given" if axes else "rule")
    if "T" in image.axes:
        first = np.take(image.array, 0, axis=image.axes.index("T"))
        image = ImageFile(array=first, axes=image.axes.replace("T", ""), axes_source=image.axes_source)
    found = dict(planes(image))
    return found["combined"] if "combined" in found else next(iter(found.values()))
