"""A network that knows the truth, so that what it segments end to end is known."""

from typing import Any

import numpy as np
import torch
from torch import nn

from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.segmentation import Segmenter


class Oracle(nn.Module):
    """Predicts the exact targets of known labels for any window of `index_image`, which encodes where a window lies."""

    def __init__(self, labels: np.ndarray, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.targets = torch.from_numpy(build_objective(objective).targets(labels))
        index = index_image(labels.shape).astype(np.float64)
        self.low, self.span = index.mean(), index.std()
        self.width = labels.shape[1]
        self.windows: list[tuple[int, int]] = []

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        height, width = z.shape[-2:]
        corners = (z[:, 0, 0, 0].double() * self.span + self.low).round().long()
        self.windows += [divmod(int(corner), self.width) for corner in corners]
        return torch.stack([self.targets[:, y : y + height, x : x + width] for y, x in self.windows[-len(z) :]])


def index_image(size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 whose value is the pixel's index, so that any window says where it lies."""
    assert size[0] * size[1] < 2**22, "float32 would no longer tell neighbours apart"
    return np.arange(size[0] * size[1], dtype=np.float32).reshape(size)


def card(window: int, objective: ObjectiveConfig) -> ModelCard:
    """A model card with a preprocessing that keeps the index readable."""
    keep = PreprocessConfig(clahe=False, percentile_low=0.0, percentile_high=100.0)
    return ModelCard(crop_size=window, preprocess=keep, objective=objective)


def disks(size: tuple[int, int], radius: int = 9, pitch: int = 23, seed: int = 0) -> np.ndarray:
    """Labels of disks on a jittered grid, int32; those at the rim are cut by it."""
    random = np.random.default_rng(seed)
    labels = np.zeros(size, np.int32)
    y, x = np.mgrid[: size[0], : size[1]]
    number = 0
    for cy in range(pitch // 2, size[0], pitch):
        for cx in range(pitch // 2, size[1], pitch):
            oy, ox = random.integers(-2, 3, 2)
            number += 1
            labels[(y - cy - oy) ** 2 + (x - cx - ox) ** 2 <= random.integers(radius - 3, radius + 1) ** 2] = number
    return labels


def same_cells(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two label images hold the same cells, whatever their numbers."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]).astype(np.int64), axis=1)
    return bool(len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1])


def build(labels: np.ndarray, window: int = 64, batch_size: int = 3, **objective: Any) -> tuple[np.ndarray, Segmenter]:
    """(image, segmenter) for known labels: the segmenter must give the labels back."""
    config = ObjectiveConfig(**objective)
    model = Oracle(labels, config)
    settings = {"device": "cpu", "precision": "float32", "batch_size": batch_size}
    return index_image(labels.shape), Segmenter(model, card(window, config), **settings)
