"""Schedules as pure functions of the optimizer step (0 is the first step)."""

from __future__ import annotations

import math
from typing import Literal

LearningRateRule = Literal["none", "sqrt_1024", "linear_256"]


def linear(step: int, start: float, end: float, steps: int) -> float:
    """Straight line from `start` at step 0 to `end` at step `steps - 1`, constant afterwards (NumPy's linspace)."""
    if steps <= 1 or step >= steps - 1:
        return end
    return start + (end - start) * step / (steps - 1)


def cosine(step: int, *, base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> float:
    """Linear warm-up `start` → `base` over `warmup` steps, then half a cosine `base` → `final` until `total`.

    The values are those of DINOv2's `CosineScheduler`: the warm-up is `linspace(start, base, warmup)` and the cosine
    runs over the remaining steps without reaching `final` before `total`, after which it stays there.
    """
    if step >= total:
        return final
    if step < warmup:
        return linear(step, start, base, warmup)
    progress = (step - warmup) / (total - warmup)
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * progress))


def scaled_learning_rate(base: float, global_batch: int, rule: LearningRateRule = "sqrt_1024") -> float:
    """Peak learning rate for a global batch (images over all processes and accumulated micro-batches).

    `sqrt_1024` is DINOv2's rule, base · sqrt(batch / 1024); `linear_256` the older base · batch / 256.
    """
    match rule:
        case "none":
            return base
        case "sqrt_1024":
            return base * math.sqrt(global_batch / 1024)
        case "linear_256":
            return base * global_batch / 256
