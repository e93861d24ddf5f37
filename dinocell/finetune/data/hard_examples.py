"""Hard-example sampling (data.hard): images that a model does badly are drawn more often.

A few kinds of images that look like no other stay wrong after a training that draws all images alike: they are too
few, and the common kinds have long been learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dinocell.core import log
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.data.run_data import RunData
from dinocell.finetune.validate.validator import Validator, decoding_while_training
from dinocell.predict.runner import Runner

LEAST = 0.05
"""Added to 1 - MMA: images without a fault are still drawn."""


def training_scores(runner: Runner, store: ImageStore, config: FinetuneConfig) -> tuple[float, ...]:
    """MMA of the model on each training image, in the scale of the training, [0, 1]; 1 where its files are unusable."""
    log.info(f"scoring {len(store)} training images with the starting model, for data.hard={config.data.hard:g}")
    all_images = replace(config, validate=replace(config.validate, max_images=0, panels=0))
    validation = Validator(store, decoding_while_training(config), all_images).run(runner)
    scores = {result.index: result.scores.mma for result in validation.results}
    return tuple(scores.get(index, 1.0) for index in range(len(store)))


def draw_by_scores(data: RunData, scores: Sequence[float], config: FinetuneConfig) -> None:
    """From now on, draw the images of each dataset by what the model that was started from scored on them."""
    weights = [(1.0 + LEAST - score) ** config.data.hard for score in scores]
    data.train.order = data.train.order.weighted(weights)
    worst = sorted(range(len(scores)), key=lambda index: scores[index])[:5]
    named = ", ".join(f"{data.train_items[i].dataset.name}/{data.train_items[i].stem} {scores[i]:.2f}" for i in worst)
    mean = sum(scores) / len(scores)
    log.info(f"mean MMA of {config.start!r} on the training images: {mean:.3f}; drawn most often: {named}")
