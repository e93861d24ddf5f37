"""Scores on whole images, with the windows and the decoding that inference uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.image_store import ImageStore, PreparedImage, truth_weights
from dinocell.metrics import ImageScores, SemanticScores, score_image, semantic_scores
from dinocell.models import SegmentationModel
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.runner import Runner
from dinocell.training import distributed

SCORES = ("MMA", "SEG", "DET", "AP50")
"""Shown in logs, tables and charts."""

ALL_SCORES = (*SCORES, "AP75", "PQ", "Dice", "mean")
"""Logged, and free to be monitored; `Dice` is foreground against background, `mean` is of MMA, SEG and DET."""


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One validated image.

    `prediction` is None where no panel is wanted; `spread` is the standard deviation of each map; `classes` compares
    the class of every pixel, for objectives with classes.
    """

    index: int
    dataset: str
    stem: str
    loss: float
    spread: tuple[float, ...]
    scores: ImageScores
    prediction: NDArray[np.int32] | None
    classes: SemanticScores | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All results of one validation, in the order of the split, and how `metrics` averages them."""

    results: tuple[ImageResult, ...]
    average: Literal["datasets", "images"] = "datasets"

    def metrics(self) -> dict[str, float]:
        """Average every score (each in [0, 1]) and the loss; empty without images."""
        if self.average == "images":
            return mean_scores(self.results)
        groups = list(self.by_dataset().values())
        return {name: _finite_mean([g[name] for g in groups]) for name in groups[0]} if groups else {}

    @property
    def mean_name(self) -> str:
        """Name of what `metrics` averages, in words."""
        several = self.average == "datasets" and len({r.dataset for r in self.results}) > 1
        return "mean over datasets" if several else "mean over images"

    def by_dataset(self) -> dict[str, dict[str, float]]:
        """Average over the images of each dataset."""
        groups: dict[str, list[ImageResult]] = defaultdict(list)
        for result in self.results:
            groups[result.dataset].append(result)
        return {name: mean_scores(members) for name, members in groups.items()}

    def spreads(self) -> tuple[float, ...]:
        """Find the largest standard deviation of each map over the images; near 0, a map is the same everywhere."""
        return tuple(max(values) for values in zip(*(r.spread for r in self.results), strict=True))


def mean_scores(results: Sequence[ImageResult]) -> dict[str, float]:
    """Average over images (macro); the loss leaves out images where everything is ignored."""
    if not results:
        return {}
    means = {name: float(np.mean([image_score(r.scores, name) for r in results])) for name in ALL_SCORES}
    return {**means, "loss": _finite_mean([r.loss for r in results])}


def _finite_mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan


def image_score(scores: ImageScores, name: str) -> float:
    """Return one of `ALL_SCORES` of one image."""
    match name:
        case "mean":
            return (scores.mma + scores.seg + scores.det) / 3
        case "Dice":
            return scores.foreground_metrics()["Dice"]
        case _:
            return scores.metrics()[name]


def evenly(count: int, wanted: int) -> list[int]:
    """Spread `wanted` indices evenly over `count` (all of them when `wanted` is 0 or too large)."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, wanted).round()]


def decoding_while_training(config: FinetuneConfig) -> ObjectiveConfig:
    """Choose the decoding of validations before the end.

    Where the check of cells is chosen at the end, it is left out before: it drops right cells while a young network's
    maps are still weak, and would decide which model is the best.
    """
    return build_objective(config.objective).without_check() if config.validate.tune_decoding else config.objective


def validation_runner(
    model: SegmentationModel, config: FinetuneConfig, device: torch.device, dtype: torch.dtype
) -> Runner:
    """The model with the windows and views that inference uses."""
    return Runner(
        network=model,
        window=config.crop_size,
        overlap=config.overlap,
        batch_size=1 if device.type == "cpu" else config.train.batch_size,
        device=device,
        dtype=dtype,
        views=config.validate.views or 1,
        vectors=build_objective(config.objective).vector_maps,
    )


class Validator:
    """Runs a model over the val split; every process takes every world_size-th image.

    `decoding` is the objective's configuration that predictions are decoded with.
    """

    def __init__(self, store: ImageStore, decoding: ObjectiveConfig, config: FinetuneConfig) -> None:
        self._store, self.decoding, self._config = store, decoding, config
        self._objective = build_objective(decoding)
        self.indices = evenly(len(store), config.validate.max_images)
        self.panel_indices = {self.indices[i] for i in evenly(len(self.indices), config.validate.panels or 1)}
        if not config.validate.panels:
            self.panel_indices = set()

    def run(self, runner: Runner) -> Validation:
        """Score a model on all processes; every process gets all results."""
        validation = self.run_until(runner, lambda: False)
        assert validation is not None
        return validation

    def run_until(self, runner: Runner, stop: Callable[[], bool]) -> Validation | None:
        """Do as `run`, but return None as soon as `stop()` is true on any process: it is asked before each image."""
        world = distributed.world()
        own: list[ImageResult] = []
        stopped = False
        for index in self.indices[world.rank :: world.world_size]:
            stopped = stop()
            if stopped:
                break
            result = self._one(runner, index)
            if result is not None:
                own.append(result)
        if distributed.any_rank(stopped):
            return None
        gathered = [result for part in distributed.gather_objects(own) for result in part]
        return Validation(results=tuple(sorted(gathered, key=lambda r: r.index)), average=self._config.validate.average)

    def dataset(self, index: int) -> str:
        """Name the dataset that an image of the val split belongs to."""
        return self._store.items[index].dataset.name

    def maps(self, runner: Runner, index: int) -> tuple[PreparedImage, NDArray[np.float32]] | None:
        """Predict raw maps (K, H, W) of one image at its file's size, or None when its files are unusable."""
        prepared = self._store.get(index)
        return None if prepared is None else (prepared, prepared.placement.undo(runner.maps(prepared.image)))

    def _one(self, runner: Runner, index: int) -> ImageResult | None:
        predicted = self.maps(runner, index)
        if predicted is None:
            return None
        prepared, maps = predicted
        # Silently: early in training the notes on huge masks would fill the log.
        objective = build_objective(self.decoding.seen_at(prepared.rescaled))
        labels = objective.decode_with_notes(maps).labels
        item = self._store.items[index]
        return ImageResult(
            index=index,
            dataset=item.dataset.name,
            stem=item.stem,
            loss=self._loss(prepared, maps),
            spread=tuple(float(m.std()) for m in maps),
            scores=score_image(prepared.truth, labels),
            prediction=labels if index in self.panel_indices else None,
            classes=self._classes(prepared.truth, maps),
        )

    def _classes(self, truth: NDArray[np.int32], maps: NDArray[np.float32]) -> SemanticScores | None:
        objective = self._objective
        if not objective.class_count:
            return None
        return semantic_scores(objective.class_truth(truth), objective.class_map(maps), objective.class_count)

    def _loss(self, prepared: PreparedImage, maps: NDArray[np.float32]) -> float:
        target = self._objective.targets(prepared.truth)
        weight = truth_weights(prepared)
        with torch.inference_mode():
            loss = self._objective.loss(
                torch.from_numpy(maps)[None], torch.from_numpy(target)[None], torch.from_numpy(weight)[None, None]
            )
        return float(loss) if weight.any() else math.nan
