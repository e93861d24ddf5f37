"""Choice of how maps become cells (thresholds, check of cells, smallest cell) on the val split.

The maps of each image are predicted once and decoded with every combination.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.validate.validator import Validator, evenly, image_score
from dinocell.labels.cells import keep_cells
from dinocell.metrics import score_image
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.runner import Runner
from dinocell.training import distributed

MIN_SIZES = (15, 30, 60, 120, 240)  # px; costs next to nothing, since it only drops decoded cells
MOST_IMAGES = 96  # of the val split, evenly picked: each is decoded a hundred times
WORTHWHILE = 0.002  # smaller gains are chance on a small val split


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings tried on the val split, with their scores, and the one chosen.

    Attributes:
        metric: what was compared. images: validated images.
        scores: mean score of each setting tried.
        recipe, chosen: the recipe's setting and the one to use.
    """

    metric: str
    images: int
    scores: Mapping[ObjectiveConfig, float]
    recipe: ObjectiveConfig
    chosen: ObjectiveConfig

    @property
    def metric_name(self) -> str:
        """Name of the metric in words."""
        return "mean of MMA, SEG and DET" if self.metric == "mean" else self.metric

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the settings tried, in the order of the grid."""
        return tuned_fields(self.recipe)

    def sentence(self) -> str:
        """Say in one line for log, report and model card what changed, and what it gained."""
        changes = [
            f"{name} {getattr(self.recipe, name):g} → {getattr(self.chosen, name):g}"
            if getattr(self.recipe, name) != getattr(self.chosen, name)
            else f"{name} stays {getattr(self.recipe, name):g}"
            for name in self.fields
        ]
        before, after = self.scores[self.recipe], self.scores[self.chosen]
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return (
            f"Decoding chosen on the val split ({images}, {len(self.scores)} settings): "
            f"{', '.join(changes)}; {self.metric_name} {before:.3f} → {after:.3f}"
        )

    def as_json(self) -> dict[str, object]:
        """Return plain values for config.json."""
        return {
            "metric": self.metric,
            "images": self.images,
            "settings_tried": len(self.scores),
            "recipe": {name: getattr(self.recipe, name) for name in self.fields},
            "chosen": {name: getattr(self.chosen, name) for name in self.fields},
            "score_recipe": self.scores[self.recipe],
            "score_chosen": self.scores[self.chosen],
        }


def tuned_fields(objective: ObjectiveConfig) -> tuple[str, ...]:
    """List the names of the decoding settings that are chosen on the val split."""
    return (*build_objective(objective).tuning_grid(), "min_size")


def candidates(objective: ObjectiveConfig, small_area: float | None = None) -> list[ObjectiveConfig]:
    """List every combination of the grid's values and the recipe's own, without those that exclude each other.

    No smallest cell above `small_area` is tried: a few val images may gain from dropping debris and small cells alike,
    new images lose them (nuclei, a model of 200 steps that had chosen 240 px: MMA 0.47 against 0.59 with 60 px).
    """
    sizes = tuple(size for size in MIN_SIZES if size <= (small_area or np.inf))
    grid = {**build_objective(objective).tuning_grid(), "min_size": sizes}
    values = [sorted({*tried, getattr(objective, name)}) for name, tried in grid.items()]
    settings = [objective.with_values(dict(zip(grid, chosen, strict=True))) for chosen in itertools.product(*values)]
    return [setting for setting in settings if setting is not None]


def tuned_metric(config: FinetuneConfig) -> str:
    """Name the monitored metric; where the loss is monitored, which does not depend on decoding, MMA or Dice."""
    if config.validate.monitor != "loss":
        return config.validate.monitor
    return "MMA" if build_objective(config.objective).has_instances else "Dice"


def tune(
    runner: Runner, validator: Validator, config: FinetuneConfig, small_area: float | None = None
) -> Tuning | None:
    """Try every candidate on the val split, or 96 images of it, on all processes; None when none can be used."""
    settings, metric = candidates(config.objective, small_area), tuned_metric(config)
    world = distributed.world()
    rows: list[tuple[str, list[float]]] = []
    chosen = [validator.indices[i] for i in evenly(len(validator.indices), MOST_IMAGES)]
    for index in chosen[world.rank :: world.world_size]:
        predicted = validator.maps(runner, index)
        if predicted is not None:
            prepared, maps = predicted
            here = [setting.seen_at(prepared.rescaled) for setting in settings]
            rows.append((validator.dataset(index), score_settings(maps, prepared.truth, here, metric)))
    table = [row for part in distributed.gather_objects(rows) for row in part]
    if not table:
        return None
    means = _mean(table, config.validate.average)
    scores = dict(zip(settings, means.tolist(), strict=True))
    return Tuning(
        metric=metric,
        images=len(table),
        scores=scores,
        recipe=config.objective,
        chosen=choose(scores, config.objective),
    )


def score_settings(
    maps: NDArray[np.float32], truth: NDArray[np.int32], settings: Sequence[ObjectiveConfig], metric: str
) -> list[float]:
    """Score one image's raw maps (K, H, W) decoded with each setting.

    Neighbouring settings that differ in `min_size` only are decoded once; one label image is kept at a time.
    """
    decoded: ObjectiveConfig | None = None
    labels = np.zeros(truth.shape, np.int32)
    scores = []
    for setting in settings:
        every_size = dataclasses.replace(setting, min_size=0)
        if every_size != decoded:
            decoded, labels = every_size, build_objective(every_size).decode_with_notes(maps).labels
        large = np.bincount(labels.ravel(), minlength=1)[1:] >= setting.min_size
        scores.append(image_score(score_image(truth, keep_cells(labels, large)), metric))
    return scores


def choose(scores: Mapping[ObjectiveConfig, float], recipe: ObjectiveConfig) -> ObjectiveConfig:
    """Choose, of the settings within 0.002 of the best, the one that changes least of the recipe; then the best."""
    good = [s for s in scores if scores[s] >= max(scores.values()) - WORTHWHILE]
    return min(good, key=lambda s: (sum(getattr(s, n) != getattr(recipe, n) for n in tuned_fields(recipe)), -scores[s]))


def _mean(table: Sequence[tuple[str, Sequence[float]]], average: str) -> NDArray[np.float64]:
    """Average over the images, or over the means of the datasets: (settings,)."""
    if average == "images":
        return np.mean([row for _, row in table], axis=0)
    groups: dict[str, list[Sequence[float]]] = defaultdict(list)
    for dataset, row in table:
        groups[dataset].append(row)
    return np.mean([np.mean(rows, axis=0) for rows in groups.values()], axis=0)
