"""The parts a loss is made of, for the log."""

from __future__ import annotations

import torch
from torch import Tensor

from dinocell.finetune.data.loader import Batch
from dinocell.objectives import Objective
from dinocell.objectives.flows.objective import FlowsObjective


def split_loss(objective: Objective, loss: Tensor, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
    """`loss`, and for flows its two terms `flow` and `cell` (which sum to it), detached scalars."""
    total = loss.detach()
    if not isinstance(objective, FlowsObjective):
        return {"loss": total}
    with torch.no_grad():
        # With perfect flows only the probability's term is left.
        perfect = torch.cat([objective.config.flow_scale * batch.target[:, :2], prediction[:, 2:].float()], dim=1)
        cell = objective.loss(perfect, batch.target, batch.weight)
    return {"loss": total, "flow": total - cell, "cell": cell}
