"""KoLeo regulariser: spreads the CLS tokens of a batch (Sablayrolles et al. 2019, arXiv:1806.03198, eq. 5)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8
# Below this distance two tokens are the same image twice: no direction to push in, and 1/d would swamp the batch.
_DUPLICATE = 1e-6


class _GatherRanks(torch.autograd.Function):
    """Concatenate every rank's rows; the backward pass returns the gradient all ranks have for the own rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)  # [W * B, D]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def koleo_loss(tokens: Tensor, across_ranks: bool = False) -> Tensor:
    """-mean_i log(distance of x_i to its nearest neighbour), on L2-normalised rows, in float32 under any autocast.

    Args:
        tokens: student CLS tokens before the head, one global crop of each image, [B, D].
        across_ranks: look for neighbours in the batches of all ranks (B equal on all), not only in this one.

    Returns:
        Scalar, finite for duplicates (which get no gradient); 0 without any neighbour.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        rows = F.normalize(tokens.float(), eps=_EPS, dim=-1)  # [B, D]
        gather = across_ranks and dist.is_initialized() and dist.get_world_size() > 1
        candidates = _gather(rows) if gather else rows  # [W * B, D]
        if candidates.shape[0] < 2:
            return rows.sum() * 0.0
        first = dist.get_rank() * rows.shape[0] if gather else 0
        with torch.no_grad():
            similarity = rows @ candidates.T  # [B, W * B]
            own = torch.arange(rows.shape[0], device=rows.device)
            similarity[own, own + first] = -2.0
            nearest = similarity.argmax(dim=1)  # [B]
        squared = (rows - candidates[nearest]).square().sum(dim=1)  # [B]
        # clamp before the root: the gradient of sqrt at 0 is infinite
        distance = squared.clamp_min(_DUPLICATE**2).sqrt()
        return -torch.log(distance + _EPS).mean()


def _gather(rows: Tensor) -> Tensor:
    gathered: Tensor = _GatherRanks.apply(rows)
    return gathered
