"""Choose the probability threshold of a trained model on the val split."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dinocell import distributed
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.validation import Validator, decode
from dinocell.metrics import score_image
from dinocell.models import SegmentationModel
from dinocell.objectives import build_objective

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
WORTHWHILE = 0.002  # smaller gains are chance on a small val split


def tune_threshold(
    model: SegmentationModel, validator: Validator, config: FinetuneConfig, device: torch.device, dtype: torch.dtype
) -> tuple[float, dict[float, float]]:
    """Mean score over the val split for several thresholds, and the one to use.

    The recipe's own threshold stays unless another one gains more than 0.002.

    Returns:
        The threshold, and threshold → mean of the monitored metric (MMA when the loss is monitored).
    """
    metric = config.validate.monitor if config.validate.monitor != "loss" else "MMA"
    candidates = sorted({*THRESHOLDS, config.objective.threshold})
    objectives = [build_objective(dataclasses.replace(config.objective, threshold=t)) for t in candidates]
    world = distributed.world()
    rows = []
    for index in validator.indices[world.rank :: world.world_size]:
        predicted = validator.maps(model, index, device, dtype)
        if predicted is not None:
            prepared, maps = predicted
            rows.append([score_image(prepared.truth, decode(o, maps)).metrics()[metric] for o in objectives])
    table = [row for part in distributed.gather_objects(rows) for row in part]
    if not table:
        return config.objective.threshold, {}
    means = dict(zip(candidates, np.mean(table, axis=0).tolist(), strict=True))
    best = max(means, key=lambda t: means[t])
    gained = means[best] - means[config.objective.threshold]
    return (best if gained > WORTHWHILE else config.objective.threshold), means
