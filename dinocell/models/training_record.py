"""Origin and scores of a model, as its folder records them: training data, cell sizes, starting weights, scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dinocell.core.errors import ConfigError

Scores = Mapping[str, float | None]
"""Score by name, e.g. MMA; None where it could not be measured."""


@dataclass(frozen=True, kw_only=True)
class CellDiameters:
    """Diameters (px, at the model's scale) of the cells that a model was trained on.

    Attributes:
        median: of all training cells.
        smallest, largest: extreme medians of its datasets, and the bounds that the recipe brought every image between.
        usual: factor that images were scaled by in training, the median of its datasets'.
    """

    median: float
    smallest: float
    largest: float
    usual: float = 1.0

    def scale_for(self, diameter: float) -> float:
        """Factor that brings cells of a diameter into the known range; 1 for those in it."""
        return min(max(diameter, self.smallest), self.largest) / diameter


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """One labelled dataset that a model was trained on.

    Attributes:
        name, modality, licence, source: as in its dataset.yaml.
        fully_annotated: whether every cell carries a label; None if it is not recorded.
        train_images: number of training images.
        diameter: median diameter of its cells at the training scale, px.
        scale: median factor that its images were scaled by.
        other: keys of config.json that this version does not know.
    """

    name: str = ""
    modality: str = ""
    fully_annotated: bool | None = None
    licence: str = ""
    source: str = ""
    train_images: int | None = None
    diameter: float | None = None
    scale: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run: its data, its cells, its starting weights; None and "" where it is not recorded.

    Attributes:
        step: of the weights that were kept.
        diameter: median diameter of the training cells at the training scale, px.
        min_diameter, max_diameter: bounds that the recipe brought the cells of every image between, px; 0 = none.
        pixel_size: of the training images, µm.
        datasets: the labelled data.
        date: of the training, ISO 8601.
        initial_weights: file or model it started from, or `random`.
        initial_weights_sha256: checksum of that file.
        seed: of the run, which also decides automatic splits.
        torch, python: versions.
        other: keys of config.json that this version does not know.
    """

    step: int | None = None
    diameter: float | None = None
    min_diameter: float = 0.0
    max_diameter: float = 0.0
    pixel_size: float | None = None
    datasets: tuple[TrainingData, ...] = ()
    date: str = ""
    initial_weights: str = ""
    initial_weights_sha256: str = ""
    seed: int | None = None
    torch: str = ""
    python: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("diameter", "min_diameter", "max_diameter", "pixel_size"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"training.{name}: must be a length of 0 or more, is {value}")

    @property
    def diameters(self) -> CellDiameters | None:
        """Cell sizes that the model knows; None where no diameter is recorded."""
        if not self.diameter:
            return None
        measured = [data for data in self.datasets if data.diameter]
        known = [self.diameter, *(data.diameter for data in measured if data.diameter)]
        if self.min_diameter and self.max_diameter:  # one bound alone says nothing of the other end
            known += [self.min_diameter, self.max_diameter]
        usual = statistics.median([data.scale or 1.0 for data in measured]) if measured else 1.0
        return CellDiameters(median=self.diameter, smallest=min(known), largest=max(known), usual=usual)


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores on one split.

    Attributes:
        mean: over the split, see `mean_is`; empty where nothing was scored.
        mean_is: kind of mean, e.g. "mean over images".
        by_dataset: of each dataset.
        tuning: how the decoding was chosen on this split, where it was.
        other: further tables and facts, e.g. pooled scores, dates, checksums.
    """

    mean: Scores = field(default_factory=dict)
    mean_is: str = ""
    by_dataset: Mapping[str, Scores] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
