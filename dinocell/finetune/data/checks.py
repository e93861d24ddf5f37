"""Check of images and masks before the first step: a summary, and in words what seems wrong.

Most failed trainings fail here: masks that are outlines or 0/255 drawings, masks of other images, cells larger than a
crop. Nothing here changes the data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core.errors import DataError
from dinocell.datasets.alignment import Alignment, align
from dinocell.finetune.data.image_store import ImageStore, PreparedImage
from dinocell.finetune.validate.validator import evenly
from dinocell.labels.cells import equivalent_diameters

FEW_LABELLED = 0.1
MOSTLY = 0.5


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Measures of one prepared image; lengths in pixels at the training scale.

    Attributes:
        shape: of the file (H, W).
        rescaled: side at the training scale over that in the file.
        cells: number of labels. diameters: of circles of equal area.
        labelled: share of pixels with a label.
        pieces: connected components of the foreground.
        fragmented: share of the cells that consist of several pieces.
        alignment: the fit of mask outlines to the image's edges, and if not, what would.
        constant: whether the image has no contrast at all.
    """

    dataset: str
    stem: str
    shape: tuple[int, int]
    rescaled: float
    cells: int
    diameters: NDArray[np.float64]
    labelled: float
    pieces: int
    fragmented: float
    alignment: Alignment
    constant: bool
    complete: bool


@dataclass(frozen=True, kw_only=True)
class CellSizes:
    """Sizes of the cells that a model is trained on, by which `dinocell segment` scales new images.

    Attributes:
        diameter: median over all cells, px at the training scale; None when nothing was checked.
        diameters: the same for each dataset that has cells.
        small_area: px of which 5 % of all cells have less; None when nothing was checked.
        scales: median over the images of each dataset of the training scale over the file's.
    """

    diameter: float | None = None
    small_area: float | None = None
    diameters: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Lines for the user, and the cells' sizes."""

    summary: tuple[str, ...]
    warnings: tuple[str, ...]
    sizes: CellSizes


def measure(dataset: str, stem: str, prepared: PreparedImage) -> ImageFacts:
    """Measure one image."""
    own = prepared.placement.inside
    image, labels = prepared.image[own], prepared.labels[own]
    areas = np.bincount(labels.ravel())[1:]
    return ImageFacts(
        dataset=dataset,
        stem=stem,
        shape=(prepared.truth.shape[0], prepared.truth.shape[1]),
        rescaled=prepared.rescaled,
        cells=len(areas),
        diameters=equivalent_diameters(areas),
        labelled=float((labels > 0).mean()),
        pieces=int(ndimage.label(labels > 0)[1]),
        fragmented=_fragmented_share(labels, prepared.boxes),
        alignment=align(image, labels),
        constant=float(image.std()) < 1e-6,
        complete=prepared.unlabelled_weight == 1.0,
    )


def _fragmented_share(labels: NDArray[np.int32], boxes: NDArray[np.int64]) -> float:
    """Share of cells with a second piece of at least a tenth of the cell; smaller crumbs are annotators' slips."""
    broken = 0
    for number, (y0, x0, y1, x1) in enumerate(boxes, 1):
        pieces, count = ndimage.label(labels[y0:y1, x0:x1] == number, structure=np.ones((3, 3)))
        if count > 1:
            sizes = np.sort(np.bincount(pieces.ravel())[1:])
            broken += bool(sizes[-2] >= 0.1 * sizes.sum())
    return broken / len(boxes) if len(boxes) else 0.0


def inspect_store(store: ImageStore, limit: int) -> list[ImageFacts]:
    """Measure up to `limit` images, spread evenly; unusable pairs are left out (the store reports them)."""
    facts = []
    for index in evenly(len(store), limit):
        prepared = store.get(index)
        if prepared is not None:
            facts.append(measure(store.items[index].dataset.name, store.items[index].stem, prepared))
    return facts


def summary(facts: Sequence[ImageFacts]) -> list[str]:
    """One line a dataset: image sizes, cells an image, cell diameters."""
    lines = []
    for name, members in _by_dataset(facts).items():
        heights, widths = zip(*(f.shape for f in members), strict=True)
        diameters = np.concatenate([f.diameters for f in members])
        size = f"{min(widths)} × {min(heights)}"
        if (min(widths), min(heights)) != (max(widths), max(heights)):
            size += f" to {max(widths)} × {max(heights)}"
        cells = [f.cells for f in members]
        line = f"{name}: {len(members)} images looked at, {size} px, {min(cells)} to {max(cells)} cells an image"
        if len(diameters):
            low, middle, high = np.percentile(diameters, [5, 50, 95])
            line += f", cell diameter {middle:.0f} px (5–95 %: {low:.0f}–{high:.0f})"
        empty = cells.count(0)
        lines.append(line + (f", {empty} without any cell (used as background)" if empty else ""))
    return lines


def problems(facts: Sequence[ImageFacts], *, crop_size: int, pixels_per_patch: float, instances: bool) -> list[str]:
    """Describe what looks wrong, with the remedy; a dataset may well be right in spite of it.

    Args:
        pixels_per_patch: side of a backbone patch, in pixels of the image.
        instances: whether the objective separates single cells.
    """
    found: list[str] = []
    for name, members in _by_dataset(facts).items():
        found += [f"{name}: {text}" for text in _dataset_problems(members, crop_size, pixels_per_patch, instances)]
    return found


def _dataset_problems(
    members: Sequence[ImageFacts], crop_size: int, pixels_per_patch: float, instances: bool
) -> list[str]:
    filled = [f for f in members if f.cells]
    found = []
    if not filled:
        return [f"all {len(members)} masks looked at are empty; nothing but background can be learnt from this dataset"]
    if instances and _share(filled, lambda f: f.cells == 1 and f.pieces > 3) > MOSTLY:
        found.append(
            "the masks look binary (one value for all cells); touching cells cannot be separated. Export label images "
            "(one number per cell), or set data.label_pieces=true to number the separate pieces"
        )
    elif _share(filled, lambda f: f.fragmented > MOSTLY and f.cells > 1) > MOSTLY:
        found.append(
            "most labels are scattered over several pieces; the masks look like classes (one number per cell type) or "
            "damaged by lossy compression or smooth resizing. Export one number per cell, as PNG or TIFF"
        )
    if misaligned := _misaligned(filled):
        found.append(misaligned)
    found += _size_problems(filled, crop_size, pixels_per_patch)
    labelled = float(np.median([f.labelled for f in filled]))
    if all(f.complete for f in filled) and labelled < FEW_LABELLED and len(filled) > 2:
        found.append(
            f"only {labelled:.0%} of the pixels carry a label; if cells were left out, write fully_annotated: false "
            "into dataset.yaml (or set data.fully_annotated=no), else the model learns to miss them"
        )
    constant = [f.stem for f in members if f.constant]
    if constant:
        found.append(f"{len(constant)} image(s) have no contrast at all, for example {constant[0]}")
    return found


def _misaligned(filled: Sequence[ImageFacts]) -> str:
    """Describe a misalignment of most masks with their images, or return ""."""
    turns = [f.alignment.better_turn for f in filled if f.alignment.better_turn]
    if len(turns) > MOSTLY * len(filled):
        turn = max(set(turns), key=turns.count)
        return f"the masks fit the images better {turn}; check the export (axis order, image origin)"
    shifts = np.array([f.alignment.better_shift for f in filled if f.alignment.better_shift], float).reshape(-1, 2)
    middle = np.median(shifts, axis=0) if len(shifts) else np.zeros(2)
    # A slip of the export is the same everywhere; masks of other images fit best wherever chance has it.
    agreeing = np.linalg.norm(shifts - middle, axis=1) <= max(3.0, 0.2 * float(np.linalg.norm(middle)))
    if agreeing.sum() > MOSTLY * len(filled):
        down, right = (round(float(value)) for value in middle)
        vertical, horizontal = "down" if down >= 0 else "up", "right" if right >= 0 else "left"
        return (
            f"the masks fit the images better shifted by {abs(down)} px {vertical} and {abs(right)} px {horizontal}; "
            "check the export (cropping, stitching, registration)"
        )
    strangers = sum(f.alignment.unrelated or f.alignment.better_shift is not None for f in filled)
    if len(filled) > 2 and strangers > MOSTLY * len(filled):
        return (
            f"in {strangers} of {len(filled)} images the mask's outlines are off the image's edges; check that each "
            "mask belongs to the image of the same name"
        )
    return ""


def _size_problems(filled: Sequence[ImageFacts], crop_size: int, pixels_per_patch: float) -> list[str]:
    diameters = np.concatenate([f.diameters for f in filled])
    large = float((diameters > 0.75 * crop_size).mean())
    found = []
    if large > 0.25:
        found.append(
            f"{large:.0%} of the cells are larger than three quarters of the crop ({crop_size} px), so most crops show "
            "parts of cells; choose a larger crop_size or downscale the images"
        )
    middle = float(np.median(diameters))
    if middle < pixels_per_patch:
        found.append(
            f"half of the cells are smaller than one patch of the backbone ({middle:.1f} px against "
            f"{pixels_per_patch:.1f} px); enlarge the images, or raise input_size over crop_size"
        )
    return found


def check_training_data(
    store: ImageStore, limit: int, *, crop_size: int, pixels_per_patch: float, instances: bool
) -> DataCheck:
    """Look at up to `limit` images of a training set.

    Raises:
        DataError: no image is usable, or no checked mask contains a cell.
    """
    facts = inspect_store(store, limit)
    if not facts:
        reason = next(iter(store.bad.values()), "no image was found")
        raise DataError(f"none of the {len(store)} training images can be used; the first reason: {reason}")
    if not any(f.cells for f in facts):
        raise DataError(
            f"all {len(facts)} training masks looked at are empty (for example {facts[0].stem} of {facts[0].dataset}); "
            "check that masks have numbers above 0 where cells are, and that they were not saved as outlines or alpha"
        )
    warnings = problems(facts, crop_size=crop_size, pixels_per_patch=pixels_per_patch, instances=instances)
    return DataCheck(summary=tuple(summary(facts)), warnings=tuple(warnings), sizes=cell_sizes(facts))


def cell_sizes(facts: Sequence[ImageFacts]) -> CellSizes:
    """Typical diameters and scales of images of which at least one has cells."""
    filled = {name: members for name, members in _by_dataset(facts).items() if any(f.cells for f in members)}
    diameters = np.concatenate([f.diameters for f in facts])
    return CellSizes(
        diameter=float(np.median(diameters)),
        small_area=float(np.percentile(np.pi / 4 * diameters**2, 5)),
        diameters={
            name: float(np.median(np.concatenate([f.diameters for f in members]))) for name, members in filled.items()
        },
        scales={name: float(np.median([f.rescaled for f in members if f.cells])) for name, members in filled.items()},
    )


def _by_dataset(facts: Sequence[ImageFacts]) -> dict[str, list[ImageFacts]]:
    groups: dict[str, list[ImageFacts]] = defaultdict(list)
    for fact in facts:
        groups[fact.dataset].append(fact)
    return groups


def _share(facts: Sequence[ImageFacts], test: object) -> float:
    assert callable(test)
    return sum(bool(test(f)) for f in facts) / len(facts)
