"""Values that change from step to step: learning rates, weight decay, EMA momentum, teacher temperature."""

from __future__ import annotations

from dataclasses import dataclass

from dinocell.pretrain.config import PretrainConfig
from dinocell.training.schedules import cosine, linear


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """The schedules' values at one optimizer step."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    temperature: float


def values_at(config: PretrainConfig, peak_lr: float, step: int) -> StepValues:
    """Values at `step` (0 is the first), as DINOv2's `build_schedulers`.

    Args:
        config: the run's settings.
        peak_lr: learning rate at the end of the warm-up, after the batch size rule.
        step: optimizer steps done so far.
    """
    optim, teacher = config.optim, config.teacher
    total = optim.total_steps
    lr = cosine(step, base=peak_lr, final=optim.final_lr, total=total, warmup=optim.steps(optim.warmup_epochs))
    frozen = step < optim.steps(optim.freeze_last_layer_epochs)
    warmup = optim.steps(teacher.temperature_warmup_epochs)
    return StepValues(
        lr=lr,
        last_layer_lr=0.0 if frozen else lr,
        weight_decay=cosine(step, base=optim.weight_decay, final=optim.weight_decay_end, total=total),
        momentum=cosine(step, base=teacher.momentum, final=teacher.momentum_end, total=total),
        temperature=linear(step, teacher.temperature_start, teacher.temperature, warmup),
    )
