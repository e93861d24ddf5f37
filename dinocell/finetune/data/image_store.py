"""Labelled files, preprocessed whole and once, at the scale of the training: what crops are cut from."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core.errors import DataError, DinoCellError
from dinocell.datasets.labelled import LabelledItem
from dinocell.finetune.config import DataConfig, FinetuneConfig
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.preprocess import preprocess_plane
from dinocell.images.read import read_image
from dinocell.labels.cells import cell_boxes, equivalent_diameters, find_cells, renumber
from dinocell.labels.files import read_labels
from dinocell.objectives import build_objective
from dinocell.predict.placement import Placement

MOST_ENLARGED = 4.0
"""Cells of few pixels are often wrong annotations; enlarging their images further would only take memory."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """One labelled image, ready to be cut.

    Attributes:
        image: preprocessed gray float32 (H, W), at least a crop in size, as the model will see such an image.
        labels: int32 (H, W) at the same scale, numbered 1…n without gaps.
        ignore: bool (H, W), or None when nothing is to be ignored.
        boxes: int64 (n, 4), y0, x0, y1, x1 of each cell, ends exclusive.
        truth: int32 labels at the file's own size.
        unlabelled_weight: weight of background pixels in the loss.
        placement: its scale, and the part of it that shows the file's image; the rest has no labels and is ignored.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    ignore: NDArray[np.bool_] | None
    boxes: NDArray[np.int64]
    truth: NDArray[np.int32]
    unlabelled_weight: float
    placement: Placement

    @property
    def rescaled(self) -> float:
        """Side over that in the file, where the size of its cells changed it (data.max_diameter); else 1."""
        height, width = self.placement.scaled
        return math.sqrt(height * width / self.truth.size)

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        own_truth = 0 if self.truth is self.labels else self.truth.nbytes
        return self.image.nbytes + self.labels.nbytes + own_truth + (0 if self.ignore is None else self.ignore.nbytes)


def prepare(item: LabelledItem, config: FinetuneConfig, background: float) -> PreparedImage:
    """Read, check and preprocess one image with its labels.

    Args:
        background: loss weight of unlabelled pixels.

    Raises:
        DataError: a file cannot be read, or image, mask and ignore mask differ in size.
    """
    gray = to_gray(read_image(item.image))
    truth = read_labels(item.mask)
    _same_size(item, gray.shape, truth.shape, "mask", item.mask)
    if config.data.label_pieces:
        truth = ndimage.label(truth > 0, structure=np.ones((3, 3)))[0].astype(np.int32)
    has_instances = build_objective(config.objective).has_instances  # else the numbers are classes and must stay
    if has_instances:
        truth, _ = renumber(truth)
    ignore = None
    if item.ignore is not None:
        ignore = read_labels(item.ignore) != 0
        _same_size(item, gray.shape, ignore.shape, "ignore mask", item.ignore)
    place = Placement.of(
        shape2(truth),
        window=config.crop_size,
        fit=config.fit,
        scale=cell_scale(truth, config.data),
        rescales=config.data.rescales,
    )
    labels = place.labels(truth)
    if labels is not truth and has_instances:
        labels, _ = renumber(labels)
    return PreparedImage(
        image=place.image(preprocess_plane(gray, config.preprocess)),
        labels=labels,
        ignore=place.mask(ignore),
        boxes=cell_boxes(labels),
        truth=truth,
        unlabelled_weight=background,
        placement=place,
    )


def cell_scale(labels: NDArray[np.int32], limits: DataConfig) -> float:
    """Factor that brings the median cell of `labels` (H, W) between `min_diameter` and `max_diameter` px.

    A cell's diameter is that of the circle of equal area. A limit of 0 does not apply.
    """
    areas = find_cells(labels).areas
    if not limits.rescales or not len(areas):
        return 1.0
    diameter = float(equivalent_diameters(np.median(areas)))
    factor = min(max(1.0, limits.min_diameter / diameter), MOST_ENLARGED)
    return min(factor, limits.max_diameter / diameter) if limits.max_diameter else factor


def _same_size(item: LabelledItem, image: Sequence[int], other: Sequence[int], what: str, path: Path) -> None:
    if tuple(image) != tuple(other):
        raise DataError(
            f"{path}: the {what} is {other[1]} × {other[0]} px but its image {item.image} is {image[1]} × {image[0]} "
            "px; export both at the same size"
        )


class ImageStore:
    """Prepared images, kept in memory up to a budget; the rest is read again each time.

    A pair that cannot be used is reported once and answered with None.
    """

    def __init__(self, items: Sequence[LabelledItem], config: FinetuneConfig, report: Callable[[str], None]) -> None:
        self.items = list(items)
        self.bad: dict[int, str] = {}
        self._config, self._report = config, report
        self._budget = config.data.cache_gb * 2**30
        self._held = 0
        self._cache: dict[int, PreparedImage] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    def get(self, index: int) -> PreparedImage | None:
        """The prepared image, or None when its files are unusable."""
        if index in self._cache:
            return self._cache[index]
        if index in self.bad:
            return None
        item = self.items[index]
        try:
            prepared = prepare(item, self._config, self.background(item))
        except DinoCellError as error:
            with self._lock:
                if index not in self.bad:
                    self.bad[index] = str(error)
                    self._report(f"skipped {item.dataset.name}/{item.stem}: {error}")
            return None
        with self._lock:
            if index not in self._cache and self._held + prepared.nbytes <= self._budget:
                self._cache[index] = prepared
                self._held += prepared.nbytes
        return prepared

    def background(self, item: LabelledItem) -> float:
        """Loss weight of the unlabelled pixels of this item's dataset (§3.3.5)."""
        match self._config.data.fully_annotated:
            case "yes":
                complete = True
            case "no":
                complete = False
            case _:
                complete = item.dataset.fully_annotated
        return 1.0 if complete else self._config.data.ignore_weight


def pixel_weights(
    prepared: PreparedImage, rows: slice = slice(None), columns: slice = slice(None)
) -> NDArray[np.float32]:
    """Weights M of (a part of) an image: 1 on labels, the dataset's weight on background, 0 where ignored (§3.3.5)."""
    labels = prepared.labels[rows, columns]
    weight = np.where(labels > 0, np.float32(1.0), np.float32(prepared.unlabelled_weight))
    return weight if prepared.ignore is None else np.where(prepared.ignore[rows, columns], np.float32(0.0), weight)


def truth_weights(prepared: PreparedImage) -> NDArray[np.float32]:
    """Weights M (H, W) at the file's own size."""
    return prepared.placement.undo_labels(pixel_weights(prepared))


def shape2(array: NDArray[np.generic]) -> tuple[int, int]:
    """Height and width of an array (H, W, …)."""
    return int(array.shape[0]), int(array.shape[1])
