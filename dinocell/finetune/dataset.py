"""From labelled files to training samples: preprocess whole images once, cut random crops, make their targets.

A crop's targets are those of the whole cells it touches, cut to the crop: near the border the flow of a cell points to
the cell's true centre even where that lies outside, so neighbouring inference windows agree about it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinocell.data.crops import resize_image, resize_labels, scale_to_cover
from dinocell.data.io import read_image, read_labels, to_gray
from dinocell.data.labelled import LabelledItem
from dinocell.data.preprocess import preprocess
from dinocell.errors import DataError, DinoCellError
from dinocell.finetune.augment import (
    augment_intensity,
    crop_corner,
    log_uniform,
    random_turn,
    resize_crop,
)
from dinocell.finetune.config import DataConfig, FinetuneConfig
from dinocell.finetune.sampler import SampleOrder, sample_rng
from dinocell.inference.fitting import content_size, fit_labels, fit_plane, padding
from dinocell.inference.tiling import mirrored, windows
from dinocell.objectives import Objective

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
        height, width = self.own_size or _shape2(self.image)
        return slice(0, height), slice(0, width)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        own_truth = 0 if self.truth is self.labels else self.truth.nbytes
        return self.image.nbytes + self.labels.nbytes + own_truth + (0 if self.ignore is None else self.ignore.nbytes)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training crop: image (H, W), target (K, H, W) and pixel weight (H, W), all float32.

    Attributes:
        window, turn: numbers of the window of the grid and of the symmetry; None where crops are cut anywhere.
        tokens: the backbone's cached patch tokens (N, D) float16, if there are any.
    """

    image: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    window: int | None = None
    turn: int | None = None
    tokens: NDArray[np.float16] | None = None


class TokenSource(Protocol):
    """Where the cached tokens of a crop come from."""

    def get(self, image: int, window: int, turn: int) -> NDArray[np.float16] | None:
        """Tokens (N, D) of a window of an image, turned; None when they are not kept."""


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
    if config.objective.kind != "semantic":  # there the numbers are classes and must stay
        truth = compact_labels(truth)
    ignore = None
    if item.ignore is not None:
        ignore = read_labels(item.ignore) != 0
        _same_size(item, gray.shape, ignore.shape, "ignore mask", item.ignore)
    size, fit, rescaled, own_size = config.crop_size, config.fit, 1.0, None
    if fit == "tile" and config.data.rescales:
        # As the model will see such an image: enlarging it to a crop would change the size of its cells again.
        wanted = rescaled_size(truth, config.data)
        rescaled = float(np.sqrt(wanted[0] * wanted[1] / truth.size))
        image = mirrored(np.asarray(resize_image(preprocess(gray, config.preprocess), wanted), np.float32), size)
        labels = resize_labels(truth, wanted)
        ignore = None if ignore is None else resize_labels(ignore, wanted)
        if _shape2(image) != wanted:
            own_size, outside = wanted, np.ones(image.shape, bool)
            outside[: wanted[0], : wanted[1]] = False
            ignore = _or(None if ignore is None else _padded(ignore, image.shape), outside)
            labels = _padded(labels, image.shape)
    elif fit == "tile":
        image = np.ascontiguousarray(scale_to_cover(preprocess(gray, config.preprocess), size))
        labels = resize_labels(truth, _shape2(image))
        ignore = None if ignore is None else resize_labels(ignore, _shape2(image))
    else:
        image, labels = fit_plane(preprocess(gray, config.preprocess), size, fit), fit_labels(truth, size, fit)
        ignore = _or(None if ignore is None else fit_labels(ignore, size, fit), padding(_shape2(truth), size, fit))
    if labels is not truth and config.objective.kind != "semantic":
        labels = compact_labels(labels)
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
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    if not limits.rescales or not len(areas):
        return _shape2(labels)
    diameter = 2.0 * float(np.sqrt(np.median(areas) / np.pi))
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


def compact_labels(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Renumber labels to 1…n without gaps, keeping their order; background stays 0."""
    values, inverse = np.unique(labels, return_inverse=True)
    numbers = np.arange(len(values), dtype=np.int32) + (0 if len(values) and values[0] == 0 else 1)
    return numbers[inverse].reshape(labels.shape)  # [H, W]


def cell_boxes(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Bounding boxes (n, 4) of labels 1…n: y0, x0, y1, x1, ends exclusive; zeros for a number that is absent."""
    slices = ndimage.find_objects(labels)
    boxes = [[0, 0, 0, 0] if s is None else [s[0].start, s[1].start, s[0].stop, s[1].stop] for s in slices]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)  # [n, 4]


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


class CropDataset:
    """Makes the training sample of a number; the same number always gives the same sample."""

    def __init__(self, store: ImageStore, order: SampleOrder, objective: Objective, config: FinetuneConfig) -> None:
        self.store, self._order, self._objective = store, order, objective
        self._config = config
        self.tokens: TokenSource | None = None

    def reorder(self, order: SampleOrder) -> None:
        """Draw images by another rule from now on."""
        self._order = order

    def __call__(self, number: int) -> Sample:
        """Sample `number`: the crop of an image drawn by the sampling rule.

        Raises:
            DataError: no image of the training set can be used.
        """
        index = self._order(number)
        for offset in range(len(self.store)):
            usable = (index + offset) % len(self.store)
            prepared = self.store.get(usable)
            if prepared is not None:
                sample = self.cut(prepared, sample_rng(self._config.seed, number))
                if self.tokens is None or sample.window is None or sample.turn is None:
                    return sample
                return replace(sample, tokens=self.tokens.get(usable, sample.window, sample.turn))
        raise DataError(f"none of the {len(self.store)} training images can be used; see the warnings above")

    def cut(self, prepared: PreparedImage, rng: np.random.Generator) -> Sample:
        """A random, augmented crop of one image with its target and weight."""
        config, size = self._config.augment, self._config.crop_size
        zoom = log_uniform(config.scale, rng)
        window = min(max(1, round(size / zoom)), min(prepared.image.shape))
        number = None
        if config.positions == "grid":
            grid = grid_windows(_shape2(prepared.image), self._config)
            number = int(rng.integers(len(grid)))
            y, x = grid[number]
        else:
            focused = config.cell_focus and rng.random() < config.cell_focus
            y, x = crop_corner(
                _shape2(prepared.image), window, focus_point(prepared.boxes, rng) if focused else None, rng
            )
        turn = random_turn(config, rng)

        image = prepared.image[y : y + window, x : x + window]
        if window != size:
            image = resize_crop(image, size)
        image = augment_intensity(image, config, rng)
        weight = pixel_weights(prepared, slice(y, y + window), slice(x, x + window))
        if window != size:
            weight = resize_labels(weight, (size, size))
        target = self._target(prepared, (y, x, window))
        return Sample(
            image=turn.apply(image).astype(np.float32, copy=False),
            target=np.ascontiguousarray(
                self._objective.transform_targets(target, turn.flip_y, turn.flip_x, turn.quarter_turns)
            ),
            weight=turn.apply(weight).astype(np.float32, copy=False),
            window=number,
            turn=None if number is None else turn.number,
        )

    def _target(self, prepared: PreparedImage, window: tuple[int, int, int]) -> NDArray[np.float32]:
        size = self._config.crop_size
        if self._config.objective.kind == "semantic":  # depends on each pixel alone
            y, x, side = window
            return self._objective.targets(resize_labels(prepared.labels[y : y + side, x : x + side], (size, size)))
        region, (top, left) = labels_around(prepared.labels, prepared.boxes, window, size)
        return self._objective.targets(region)[:, top : top + size, left : left + size]


def grid_windows(shape: tuple[int, int], config: FinetuneConfig) -> list[tuple[int, int]]:
    """Corners (y, x) of the windows that inference cuts an image of `shape` into; each fills a crop."""
    return [(w.y, w.x) for w in windows(shape, config.crop_size, config.overlap)]


def focus_point(boxes: NDArray[np.int64], rng: np.random.Generator) -> tuple[float, float] | None:
    """Centre (y, x) of a random cell; every octave of cell size that occurs is drawn equally often."""
    boxes = boxes[boxes[:, 2] > 0]
    if not len(boxes):
        return None
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    octave = np.floor(np.log2(np.maximum(side, 1.0))).astype(np.int64)
    candidates = np.flatnonzero(octave == rng.choice(np.unique(octave)))
    y0, x0, y1, x1 = boxes[rng.choice(candidates)]
    return (y0 + y1) / 2, (x0 + x1) / 2


def pixel_weights(
    prepared: PreparedImage, rows: slice = slice(None), columns: slice = slice(None)
) -> NDArray[np.float32]:
    """Weights M of (a part of) an image: 1 on labels, the dataset's weight on background, 0 where ignored (§3.3.5)."""
    labels = prepared.labels[rows, columns]
    weight = np.where(labels > 0, np.float32(1.0), np.float32(prepared.unlabelled_weight))
    return weight if prepared.ignore is None else np.where(prepared.ignore[rows, columns], np.float32(0.0), weight)


def truth_weights(prepared: PreparedImage, config: FinetuneConfig) -> NDArray[np.float32]:
    """Weights M (H, W) at the file's own size."""
    weights, size = pixel_weights(prepared)[prepared.own], _shape2(prepared.truth)
    if config.fit != "tile":
        height, width = content_size(size, config.crop_size, config.fit)
        weights = weights[:height, :width]
    return resize_labels(weights, size)


def labels_around(
    labels: NDArray[np.int32], boxes: NDArray[np.int64], window: tuple[int, int, int], size: int
) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """The whole cells that a window touches, scaled so that the window measures `size` pixels.

    Args:
        window: y, x and side of the square window in `labels`.

    Returns:
        Labels of those cells only, renumbered, in a region that holds them whole, and the window's corner in it.
    """
    y, x, side = window
    ids = np.unique(labels[y : y + side, x : x + side])
    ids = ids[ids > 0]
    if not len(ids):
        return np.zeros((size, size), dtype=np.int32), (0, 0)
    touched = boxes[ids - 1]
    y0, x0 = min(y, int(touched[:, 0].min())), min(x, int(touched[:, 1].min()))
    y1, x1 = max(y + side, int(touched[:, 2].max())), max(x + side, int(touched[:, 3].max()))
    renumber = np.zeros(len(boxes) + 1, dtype=np.int32)
    renumber[ids] = np.arange(1, len(ids) + 1, dtype=np.int32)
    if side == size:
        return renumber[labels[y0:y1, x0:x1]], (y - y0, x - x0)
    zoom = size / side
    rows, top = _scaled_index(y, y0, y1, zoom, size)
    columns, left = _scaled_index(x, x0, x1, zoom, size)
    scaled = renumber[labels[np.ix_(rows, columns)]]
    return compact_labels(scaled), (top, left)


def _scaled_index(start: int, low: int, high: int, zoom: float, size: int) -> tuple[NDArray[np.int64], int]:
    """Source index of each target pixel along one axis, so that the window begins exactly on a target pixel."""
    before = int(np.ceil((start - low) * zoom))
    after = max(0, int(np.ceil((high - start) * zoom)) - size)
    position = start + (np.arange(-before, size + after) + 0.5) / zoom
    return np.clip(np.floor(position).astype(np.int64), low, high - 1), before


def _shape2(array: NDArray[np.generic]) -> tuple[int, int]:
    return int(array.shape[0]), int(array.shape[1])
