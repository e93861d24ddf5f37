"""Shared by all layouts: a pair, a refusal, and object masks merged into labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.core.arrays import Labels

Mask = npt.NDArray[np.bool_]
Labeller = Callable[[], tuple[Labels, list[str]]]
"""Gives the labels (H, W) int32 of an image and notes about them, or raises DataError."""


Pixels = Callable[[], npt.NDArray[Any]]
"""Returns one plane of a file with many, or raises DataError."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image file and its labels, as a layout finds them.

    Attributes:
        image: the file.
        labels: of the image.
        split_key: what splits are recognised by; empty takes the path below the source.
        frame: ending of the stem where a file has several images.
        pixels: the one image (H, W) of such a file; None where the file is the image.
    """

    image: Path
    labels: Labeller
    split_key: str = ""
    frame: str = ""
    pixels: Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image of a source, how to get its labels, and the text that patterns of splits are searched in."""

    stem: str
    image: Path
    relative: str
    split_key: str
    labels: Labeller
    pixels: Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An image that was left out, and why."""

    file: str
    reason: str


def merge_masks(masks: list[Mask]) -> tuple[Labels, list[str]]:
    """Merge possibly overlapping object masks (H, W) into a label image, smaller ones on top."""
    labels = np.zeros(masks[0].shape, dtype=np.int32)
    shared = 0
    order = sorted(range(len(masks)), key=lambda k: (-int(masks[k].sum()), k))
    for number, k in enumerate(order, start=1):
        shared += int((labels[masks[k]] > 0).sum())
        labels[masks[k]] = number
    return labels, [f"{shared} px belong to several objects"] if shared else []
