"""Collapse monitoring: effective rank of the teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor

from dinocell.training import distributed

_MEMORY = 1024  # CLS tokens; RankMe can never exceed the number of rows
_PATCHES = 1024


@torch.no_grad()
def rank_me(features: Tensor) -> float:
    """Effective rank exp(entropy of the normalised singular values) (Garrido et al. 2023, arXiv:2210.02885, eq. 1).

    Args:
        features: [n, D].

    Returns:
        Between 1 (every row a multiple of one vector) and min(n, D); 0.0 for all-zero or no features.
    """
    rows = features.detach().double()
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    if not gram.numel() or not bool(torch.isfinite(gram).all()):
        return 0.0
    singular = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    if singular.sum() == 0:
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


@torch.no_grad()
def of_all_ranks(tokens: Tensor, limit: int) -> Tensor:
    """Up to `limit` evenly spaced tokens of the batch that all ranks' batches make together; alike on every rank.

    Args:
        tokens: this rank's [2 B, N, D], the first crops of its B images before the second ones.

    Returns:
        float32 [n, D] in the order of one process with all images: a small sum over ranks, not a gathering of all.
    """
    world = distributed.world()
    crops, count = 2, tokens.shape[1]
    images = tokens.shape[0] // crops * world.world_size
    total = crops * images * count
    chosen = torch.arange(0, total, max(total // limit, 1), device=tokens.device)[:limit]
    image, patch = chosen // count, chosen % count
    crop, place = image // images, image % images
    own = images // world.world_size
    mine = place // own == world.rank
    rows = torch.zeros(len(chosen), tokens.shape[2], device=tokens.device)
    rows[mine] = tokens[(crop * own + place % own)[mine], patch[mine]].float()
    return distributed.all_reduce_sum(rows)


class FeatureMonitor:
    """Effective ranks of the teacher's features: of the last CLS tokens and of the current patch tokens."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._tokens = torch.zeros(0, width, device=device)
        self.start: dict[str, float] = {}  # first values, the measure of a collapse

    @torch.no_grad()
    def observe(self, cls_tokens: Tensor) -> None:
        """Remember the CLS tokens [2 B, D] of all ranks; the oldest beyond the memory are forgotten."""
        rows = of_all_ranks(cls_tokens.unsqueeze(1), limit=_MEMORY)
        self._tokens = torch.cat([self._tokens, rows])[-_MEMORY:]

    def values(self, patch_tokens: Tensor) -> dict[str, float]:
        """`rankme_cls` over the remembered tokens, `rankme_patch` over up to 1,024 of all ranks' [2 B, N, D] tokens."""
        patches = of_all_ranks(patch_tokens, limit=_PATCHES)
        values = {"rankme_cls": rank_me(self._tokens), "rankme_patch": rank_me(patches)}
        if not self.start and len(self._tokens) >= min(_MEMORY, 64):
            self.start = dict(values)
        return values

    def warning(self, values: dict[str, float]) -> str | None:
        """A sentence when a rank has fallen below a quarter of its first value or under 2, else None."""
        for name, first in self.start.items():
            if values[name] < max(first / 4, 2.0) and first > 2.0:
                return (
                    f"the teacher's features are collapsing: {name} fell from {first:.1f} to {values[name]:.1f}; "
                    "lower optim.base_lr, raise teacher.momentum or start again from an earlier checkpoint"
                )
        return None

    def state_dict(self) -> dict[str, object]:
        """Tensors and numbers for the checkpoint."""
        return {"tokens": self._tokens.cpu(), "start": dict(self.start)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore `state_dict`."""
        tokens, start = state["tokens"], state["start"]
        assert isinstance(tokens, Tensor) and isinstance(start, dict)
        self._tokens = tokens.to(self._tokens.device)
        self.start = start
