"""Teacher targets from prototype logits: Sinkhorn-Knopp assignment, or softmax with an EMA centre.

Sources: SwAV (Caron et al. 2020, arXiv:2006.09882, appendix A) for Sinkhorn-Knopp; DINO (Caron et al. 2021,
arXiv:2104.14294, eq. 4) for the centre; both as used by DINOv2 (Oquab et al. 2024, section 4).
"""

import torch
from torch import Tensor, nn

from dinocell.training.distributed import all_reduce_max, all_reduce_sum


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Soft assignment of samples to prototypes in which all prototypes are used equally over all ranks.

    Args:
        logits: teacher prototype scores of this rank, [M, K], any float dtype. M may differ between ranks and be 0.
        temperature: teacher temperature, > 0.
        iterations: alternating normalisations over prototypes and samples.

    Returns:
        float32 [M, K]; every row sums to 1.
    """
    scores = logits.float() / temperature
    # exp overflows float32 at 88, a logit of 3.55 at temperature 0.04; the shared maximum cancels right after.
    local_max = scores.max() if scores.numel() else scores.new_tensor(-torch.inf)
    assignment = scores.sub_(all_reduce_max(local_max)).exp_()  # [M, K]
    samples = all_reduce_sum(scores.new_tensor(float(scores.shape[0])))
    prototypes = scores.shape[1]
    # A prototype or sample whose whole mass underflowed has sum 0; the floor turns 0/0 into 0.
    tiny = torch.finfo(torch.float32).tiny
    assignment.div_(all_reduce_sum(assignment.sum()).clamp_min(tiny))
    for _ in range(iterations):
        per_prototype = all_reduce_sum(assignment.sum(dim=0, keepdim=True))  # [1, K]
        assignment.div_(per_prototype.clamp_min(tiny)).div_(prototypes)
        assignment.div_(assignment.sum(dim=1, keepdim=True).clamp_min(tiny)).div_(samples)  # sums: [M, 1]
    return assignment.mul_(samples)


class SoftmaxCenter(nn.Module):
    """Softmax targets of logits minus an EMA of their mean over samples and ranks.

    `center` [1, K] is a buffer, so checkpoints carry it. Call `update` once the step is known to be good: a step that
    is skipped for a NaN must not poison the centre.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, prototypes))
        self._pending: list[Tensor] = []

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """[M, K] logits -> float32 [M, K] probabilities; remembers the logits' sum for `update`."""
        logits = logits.float()
        count = logits.new_full((1,), float(logits.shape[0]))
        self._pending.append(torch.cat([logits.sum(dim=0), count]))  # [K + 1]
        return torch.softmax((logits - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, keep: bool = True) -> None:
        """Move the centre towards the mean of the logits seen since the last call, or forget them (`keep=False`)."""
        pending, self._pending = self._pending, []
        if not keep or not pending:
            return
        total = all_reduce_sum(torch.stack(pending).sum(dim=0))  # [K + 1]
        if total[-1] > 0:
            self.center.lerp_((total[:-1] / total[-1]).unsqueeze(0), 1 - self.momentum)
