"""Labelled files, preprocessed whole and once, at the scale of the training: what crops are cut from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.core.errors import DataError, DinoCellError
from dinocell.datasets.labelled import LabelledItem
from dinocell.finetune.config import DataConfig, FinetuneConfig
from dinocell.images.geometry.resize import resize_image, resize_labels, scale_to_cover
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.preprocess import preprocess_plane
from dinocell.images.read import read_image
from dinocell.labels.cells import cell_boxes, equivalent_diameters, find_cells, renumber
from dinocell.labels.files import read_labels
from dinocell.objectives import build_objective
from dinocell.predict.placement import content_size, fit_labels, fit_plane, mirrored, padding

MOST_ENLARGED = 4.0
"""Cells of few pixels are often wrong annotations; enlarging their images further would only take memory."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """One labelled image, ready to be cut.

    Attributes:
        image: preprocessed gray float32 (H, W), at least a crop in size: small images are enlarged until their short
            side fills it or, where the size of their cells sets the scale (data.max_diameter), continued by mirroring.
        labels: int32 (H, W) at the same scale, numbered 1…n without gaps.
        ignore: bool (H, W), or None when nothing is to be ignored.
        boxes: int64 (n, 4), y0, x0, y1, x1 of each cell, ends exclusive.
        truth: int32 labels at the file's own size.
        unlabelled_weight: weight of background pixels in the loss.
        rescaled: side over that in the file, where the size of its cells changed it (data.max_diameter); else 1.
        own_size: height and width of the upper left part that is the image itself, where the rest is its mirror image,
            which has no labels and is ignored; None = all of it.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    ignore: NDArray[np.bool_] | None
    boxes: NDArray[np.int64]
    truth: NDArray[np.int32]
    unlabelled_weight: float
    rescaled: float = 1.0
    own_size: tuple[int, int] | None = None

    @property
    def own(self) -> tuple[slice, slice]:
        """The image itself, as (rows, columns) of the arrays."""
        height, width = self.own_size or shape2(self.image)
        return slice(0, height), slice(0, width)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
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
    size, fit, rescaled, own_size = config.crop_size, config.fit, 1.0, None
    if fit == "tile" and config.data.rescales:
        # As the model will see such an image: enlarging it to a crop would change the size of its cells again.
        wanted = rescaled_size(truth, config.data)
        rescaled = float(np.sqrt(wanted[0] * wanted[1] / truth.size))
        image = mirrored(np.asarray(resize_image(preprocess_plane(gray, config.preprocess), wanted), np.float32), size)
        labels = resize_labels(truth, wanted)
        ignore = None if ignore is None else resize_labels(ignore, wanted)
        if shape2(image) != wanted:
            own_size, outside = wanted, np.ones(image.shape, bool)
            outside[: wanted[0], : wanted[1]] = False
            ignore = _or(None if ignore is None else _padded(ignore, image.shape), outside)
            labels = _padded(labels, image.shape)
    elif fit == "tile":
        image = np.ascontiguousarray(scale_to_cover(preprocess_plane(gray, config.preprocess), size))
        labels = resize_labels(truth, shape2(image))
        ignore = None if ignore is None else resize_labels(ignore, shape2(image))
    else:
        image, labels = fit_plane(preprocess_plane(gray, config.preprocess), size, fit), fit_labels(truth, size, fit)
        ignore = _or(None if ignore is None else fit_labels(ignore, size, fit), padding(shape2(truth), size, fit))
    if labels is not truth and has_instances:
        labels, _ = renumber(labels)
    return PreparedImage(
        image=image,
        labels=labels,
        ignore=ignore,
        boxes=cell_boxes(labels),
        truth=truth,
        unlabelled_weight=background,
        rescaled=rescaled,
        own_size=own_size,
    )


def rescaled_size(labels: NDArray[np.int32], limits: DataConfig) -> tuple[int, int]:
    """Size (H, W) at which the median cell of `labels` (H, W) lies within `min_diameter` and `max_diameter` px.

    A cell's diameter is that of the circle of equal area. A limit of 0 does not hold.
    """
    areas = find_cells(labels).areas
    if not limits.rescales or not len(areas):
        return shape2(labels)
    diameter = float(equivalent_diameters(np.median(areas)))
    factor = min(max(1.0, limits.min_diameter / diameter), MOST_ENLARGED)
    if limits.max_diameter:
        factor = min(factor, limits.max_diameter / diameter)
    return max(1, round(labels.shape[0] * factor)), max(1, round(labels.shape[1] * factor))


def _padded(array: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """Zeros below and to the right."""
    return np.pad(array, [(0, wanted - length) for wanted, length in zip(size, array.shape, strict=True)])


def _or(a: NDArray[np.bool_] | None, b: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return b if a is None else a if b is None else a | b


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


def truth_weights(prepared: PreparedImage, config: FinetuneConfig) -> NDArray[np.float32]:
    """Weights M (H, W) at the file's own size."""
    weights, size = pixel_weights(prepared)[prepared.own], shape2(prepared.truth)
    if config.fit != "tile":
        height, width = content_size(size, config.crop_size, config.fit)
        weights = weights[:height, :width]
    return resize_labels(weights, size)


def shape2(array: NDArray[np.generic]) -> tuple[int, int]:
    """Height and width of an array (H, W, …)."""
    return int(array.shape[0]), int(array.shape[1])
