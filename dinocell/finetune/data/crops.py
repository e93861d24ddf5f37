"""From labelled images to training samples: cut random crops, make their targets.

A crop's targets are those of the whole cells it touches, cut to the crop: near the border the flow of a cell points to
the cell's true centre even where that is outside, so neighbouring inference windows agree about it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinocell.core.errors import DataError
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.augment import augment_intensity, crop_corner, log_uniform, random_turn
from dinocell.finetune.data.image_store import ImageStore, PreparedImage, pixel_weights, shape2
from dinocell.finetune.data.sampler import SampleOrder, sample_rng
from dinocell.images.geometry.resize import resize_image, resize_labels
from dinocell.labels.cells import renumber, renumber_table
from dinocell.objectives import Objective
from dinocell.predict.windows import covering_windows


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training crop: image (H, W), target (K, H, W) and pixel weight (H, W), all float32."""

    image: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]


class CropDataset:
    """Makes the training sample of a number; the same number always gives the same sample."""

    def __init__(self, store: ImageStore, order: SampleOrder, objective: Objective, config: FinetuneConfig) -> None:
        self.store, self.order, self._objective = store, order, objective
        self._config = config

    def __call__(self, number: int) -> Sample:
        """Sample `number`: the crop of an image drawn by the sampling rule.

        Raises:
            DataError: no image of the training set can be used.
        """
        index = self.order(number)
        for offset in range(len(self.store)):
            prepared = self.store.get((index + offset) % len(self.store))
            if prepared is not None:
                return self.cut(prepared, sample_rng(self._config.seed, number))
        raise DataError(f"none of the {len(self.store)} training images can be used; see the warnings above")

    def cut(self, prepared: PreparedImage, rng: np.random.Generator) -> Sample:
        """A random, augmented crop of one image with its target and weight."""
        config, size = self._config.augment, self._config.crop_size
        zoom = log_uniform(config.scale, rng)
        window = min(max(1, round(size / zoom)), min(prepared.image.shape))
        y, x = self._corner(prepared, window, rng)
        turn = random_turn(config, rng)

        image = prepared.image[y : y + window, x : x + window]
        if window != size:
            image = resize_image(image, (size, size), enlarging="linear")
        image = augment_intensity(image, config, rng)
        weight = pixel_weights(prepared, slice(y, y + window), slice(x, x + window))
        if window != size:
            weight = resize_labels(weight, (size, size))
        target = self._target(prepared, (y, x, window))
        return Sample(
            image=turn.apply(image).astype(np.float32, copy=False),
            target=self._objective.transform_targets(target, turn),
            weight=turn.apply(weight).astype(np.float32, copy=False),
        )

    def _corner(self, prepared: PreparedImage, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Corner (y, x) of a random window of this side (px)."""
        config, shape = self._config.augment, shape2(prepared.image)
        if config.positions == "grid":
            grid = grid_windows(shape, self._config)
            return grid[int(rng.integers(len(grid)))]
        focused = config.cell_focus and rng.random() < config.cell_focus
        return crop_corner(shape, side, focus_point(prepared.boxes, rng) if focused else None, rng)

    def _target(self, prepared: PreparedImage, window: tuple[int, int, int]) -> NDArray[np.float32]:
        size = self._config.crop_size
        if not self._objective.has_instances:  # classes depend on each pixel alone
            y, x, side = window
            return self._objective.targets(resize_labels(prepared.labels[y : y + side, x : x + side], (size, size)))
        region, (top, left) = labels_around(prepared.labels, prepared.boxes, window, size)
        return self._objective.targets(region)[:, top : top + size, left : left + size]


def grid_windows(shape: tuple[int, int], config: FinetuneConfig) -> list[tuple[int, int]]:
    """Corners (y, x) of the windows that inference cuts an image of `shape` into; each fills a crop."""
    return [(w.y, w.x) for w in covering_windows(shape, config.crop_size, config.overlap)]


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


def labels_around(
    labels: NDArray[np.int32], boxes: NDArray[np.int64], window: tuple[int, int, int], size: int
) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """The whole cells that a window touches, scaled so that the window measures `size` pixels.

    Args:
        window: y, x and side of the square window in `labels`.

    Returns:
        Labels of those cells only, renumbered, in a region that contains them whole, and the window's corner in it.
    """
    y, x, side = window
    ids = np.unique(labels[y : y + side, x : x + side])
    ids = ids[ids > 0]
    if not len(ids):
        return np.zeros((size, size), dtype=np.int32), (0, 0)
    touched = boxes[ids - 1]
    y0, x0 = min(y, int(touched[:, 0].min())), min(x, int(touched[:, 1].min()))
    y1, x1 = max(y + side, int(touched[:, 2].max())), max(x + side, int(touched[:, 3].max()))
    keep = np.zeros(len(boxes) + 1, dtype=bool)
    keep[ids] = True
    table, _ = renumber_table(keep)
    if side == size:
        return table[labels[y0:y1, x0:x1]], (y - y0, x - x0)
    zoom = size / side
    rows, top = _scaled_index(y, y0, y1, zoom, size)
    columns, left = _scaled_index(x, x0, x1, zoom, size)
    scaled = table[labels[np.ix_(rows, columns)]]
    return renumber(scaled)[0], (top, left)


def _scaled_index(start: int, low: int, high: int, zoom: float, size: int) -> tuple[NDArray[np.int64], int]:
    """Source index of each target pixel along one axis, so that the window begins exactly on a target pixel."""
    before = int(np.ceil((start - low) * zoom))
    after = max(0, int(np.ceil((high - start) * zoom)) - size)
    position = start + (np.arange(-before, size + after) + 0.5) / zoom
    return np.clip(np.floor(position).astype(np.int64), low, high - 1), before
