"""Confidence of scores: percentile bootstrap intervals over images, and over repeated trainings (seeds).

Images, and the seeds of a training, are drawn with replacement; every seed is scored on the same drawn images, since
they were the same images that it was scored on (a crossed design; Efron & Tibshirani 1993, chapters 13 and 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dinocell.metrics.scores import METRICS, ImageScores, macro_mean, pool

Float = NDArray[np.float64]
Runs = Sequence[Sequence[ImageScores]]
"""Scores [seed][image]: one list for each training, its images in the same order in every list."""

RESAMPLES = 2000
LEVEL = 0.95
_FIELDS = tuple(field.name for field in fields(ImageScores))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def score_intervals(
    runs: Runs, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """`pooled` and `macro` → metric → mean over the trainings with its interval over images and trainings.

    Raises:
        ValueError: no training, no image, or trainings scored on different numbers of images.
    """
    images, trainings = _draws(runs, resamples, seed)
    return {
        kind: _intervals(_observed(runs, kind), _resampled(runs, kind, images, trainings), level)
        for kind in ("pooled", "macro")
    }


def difference_intervals(
    first: Runs, second: Runs, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """`score_intervals` of second − first, paired: both are scored on the same drawn images and seeds.

    Raises:
        ValueError: as `score_intervals`, or the two differ in images or seeds.
    """
    if len(first) != len(second) or len(first[0]) != len(second[0]):
        raise ValueError(f"pairs need equal shapes, got {_shape(first)} and {_shape(second)} (seeds, images)")
    images, trainings = _draws(first, resamples, seed)
    return {
        kind: _intervals(
            _observed(second, kind) - _observed(first, kind),
            _resampled(second, kind, images, trainings) - _resampled(first, kind, images, trainings),
            level,
        )
        for kind in ("pooled", "macro")
    }


def _shape(runs: Runs) -> tuple[int, int]:
    return len(runs), len(runs[0]) if runs else 0


def _draws(runs: Runs, resamples: int, seed: int) -> tuple[Float, Float]:
    """Counts of draws of each image [R, I] and each training [R, S]."""
    trainings, images = _shape(runs)
    if not trainings or not images or any(len(run) != images for run in runs):
        raise ValueError(f"need equally many images for every seed, got {[len(run) for run in runs]}")
    rng = np.random.default_rng(seed)
    of_images = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    of_runs = rng.multinomial(trainings, np.full(trainings, 1 / trainings), size=resamples)
    return of_images.astype(np.float64), of_runs.astype(np.float64)


def _observed(runs: Runs, kind: str) -> Float:
    """Metrics [M], mean over the trainings."""
    rows = [pool(run).metrics() if kind == "pooled" else macro_mean(run) for run in runs]
    return np.mean([[row[name] for name in METRICS] for row in rows], axis=0)


def _resampled(runs: Runs, kind: str, images: Float, trainings: Float) -> Float:
    """Metrics [R, M] of every resample."""
    total = np.zeros((len(images), len(METRICS)))
    for number, run in enumerate(runs):
        total += trainings[:, number, None] * (_pooled(run, images) if kind == "pooled" else _macro(run, images))
    return total / len(runs)


def _pooled(run: Sequence[ImageScores], images: Float) -> Float:
    counts = np.array([[getattr(score, name) for name in _FIELDS] for score in run], np.float64)  # [I, F]
    sums = images @ counts  # [R, F]
    metrics = [ImageScores(**dict(zip(_FIELDS, row, strict=True))).metrics() for row in sums.tolist()]
    return np.array([[row[name] for name in METRICS] for row in metrics])


def _macro(run: Sequence[ImageScores], images: Float) -> Float:
    rows = [score.metrics() for score in run]
    values = np.array([[row[name] for name in METRICS] for row in rows])  # [I, M]
    return images @ values / len(run)


def _intervals(observed: Float, resampled: Float, level: float) -> dict[str, Interval]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return {
        name: Interval(value=float(observed[i]), low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(METRICS)
    }
