"""Annotations that only one public source writes: outlines, its own polygons, classes beside masks, masks of ND2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import expand_labels

from dinocell.core.arrays import Labels
from dinocell.core.errors import DataError, first_line
from dinocell.datasets.prepare.coco import draw
from dinocell.datasets.prepare.common import Found, merge_masks
from dinocell.images.gray.channels import TRANSMITTED, planes
from dinocell.images.read import read_image, read_series
from dinocell.labels.files import read_labels

GAP = 2
"""Gaps in an outline up to twice this (px) are closed."""
CELL = 1
"""TYC's category of cells; 0 is a trap."""


def outlined(mask: Path) -> tuple[Labels, list[str]]:
    """BBBC030: drawn outlines; every region they enclose is a cell, the largest is the background.

    Small gaps are closed, and each cell keeps the inner half of its outline.
    """
    array = read_image(mask).array
    drawn = (array[..., :3].max(axis=-1) if array.ndim == 3 else array) > 0
    if not drawn.any():
        return np.zeros(drawn.shape, dtype=np.int32), []
    if drawn.mean() > 0.5:
        raise DataError("most of the mask is set: a foreground mask, not outlines; use layout=binary")
    thick = ndimage.binary_dilation(drawn, iterations=GAP)
    regions, count = ndimage.label(~thick)
    if count:
        regions[regions == np.bincount(regions[regions > 0]).argmax()] = 0
    grown = expand_labels(regions, distance=GAP + 0.5)
    return np.asarray(grown, dtype=np.int32), ["from outlines: background enclosed by cells would be a cell too"]


def polygons(file: Path, image: Path) -> tuple[Labels, list[str]]:
    """NTERA-2: a JSON list of {"points": [[x, y], …]}, one a cell, in pixels."""
    size = read_image(image).array.shape[:2]
    try:
        rois = [np.asarray(entry["points"], dtype=np.float64).ravel() for entry in json.loads(file.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file.name}: not a list of polygons: {first_line(error, named=True)}") from error
    masks = [draw([list(points)], (size[0], size[1])) for points in rois if points.size >= 6]
    return merge_masks(masks) if masks else (np.zeros(size, dtype=np.int32), [])


def cells_of_tyc(mask: Path, classes: Path) -> tuple[Labels, list[str]]:
    """TYC: a colour PNG of number = R + 256 G, and a JSON with a category for each number in order; traps go."""
    array = read_image(mask).array
    if array.ndim == 3:
        array = array[..., 0].astype(np.int32) + 256 * array[..., 1].astype(np.int32)
    numbers = np.unique(array)
    numbers = numbers[numbers > 0]
    try:
        entries = json.loads(classes.read_text("utf-8"))["annotations"]
        categories = [int(entry["category_id"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{classes.name}: not a list of classes: {first_line(error, named=True)}") from error
    if len(categories) != numbers.size:
        raise DataError(f"{numbers.size} objects in the mask, {len(categories)} in {classes.name}")
    cells = [number for number, category in zip(numbers, categories, strict=True) if category == CELL]
    traps = numbers.size - len(cells)
    return np.where(np.isin(array, cells), array, 0).astype(np.int32), [f"{traps} traps left out"] if traps else []


def find_tyc(images: list[Path]) -> Iterator[Found]:
    """SPLIT/images/STEM.tif with SPLIT/labels/masks/STEM.png and SPLIT/labels/classes/STEM.json."""
    for image in images:
        labels = image.parent.parent / "labels"
        mask = next(iter(sorted((labels / "masks").glob(f"{image.stem}.*"))), None)
        if mask is not None:
            yield Found(image=image, labels=partial(cells_of_tyc, mask, labels / "classes" / f"{image.stem}.json"))


def find_nd2_masks(images: list[Path]) -> Iterator[Found]:
    """idr0095: CONDITION.nd2 of many positions, and CONDITION/…-Mask.tif in their order."""
    for image in images:
        masks = sorted(image.with_name(_bare(image)).glob("*-Mask.tif"), key=_natural)
        for position, mask in enumerate(masks):
            yield Found(
                image=image,
                labels=partial(_labels, mask),
                frame=f"_p{position:03d}",
                pixels=partial(_phase, image, position),
            )


def _bare(image: Path) -> str:
    return image.name.removesuffix(".ome.tif").removesuffix(image.suffix)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _labels(mask: Path) -> tuple[Labels, list[str]]:
    return read_labels(mask), []


def _phase(image: Path, position: int) -> npt.NDArray[Any]:
    fields = _phase_planes(image)
    if position >= len(fields):
        raise DataError(f"{image.name} has {len(fields)} positions, the masks more")
    return fields[position]


@lru_cache(maxsize=1)
def _phase_planes(image: Path) -> list[npt.NDArray[Any]]:
    """The transmitted-light channel (by name, else the first) of every position or time point of a file."""
    found = []
    for series in read_series(image):
        names = series.channel_names
        channel = next((number for number, name in enumerate(names) if TRANSMITTED.search(name)), 0)
        wanted = re.compile(rf"(^|_)(gray|c{channel})$")
        found += [np.array(plane) for name, plane in planes(series, combined=False) if wanted.search(name)]
    return found
