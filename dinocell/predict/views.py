"""Averaging over turned and mirrored views: a network that is not indifferent to them errs differently in each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

VIEWS = (1, 2, 4, 8)

ORDER = ((0, False), (2, False), (1, True), (3, True), (1, False), (3, False), (0, True), (2, True))
"""Quarter turns and whether x is mirrored first; the first 2, 4 and 8 are groups, so averages over them are as well
turned as their input."""


class AveragedViews(nn.Module):
    """Wraps a network: its maps of several views of each window, turned back and averaged.

    Args:
        model: maps [B, 1, h, w] to [B, K, h, w].
        views: one of `VIEWS`; the time grows by as much.
        vectors: pairs of maps that are the components (y, x) of a vector, which turn with the image.
    """

    def __init__(self, model: nn.Module, views: int, *, vectors: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.model = model
        self.views, self.vectors = ORDER[:views], tuple(vectors)
        self.train(model.training)

    def forward(self, z: Tensor) -> Tensor:
        """[B, 1, h, w] → [B, K, h, w] float32."""
        total: Tensor | None = None
        for turns, mirrored in self.views:
            seen = torch.rot90(z.flip(-1) if mirrored else z, turns, (-2, -1))
            maps = self._back(self.model(seen).float(), turns, mirrored)
            total = maps if total is None else total + maps
        assert total is not None
        return total / len(self.views)

    def _back(self, maps: Tensor, turns: int, mirrored: bool) -> Tensor:
        """Maps of a view as maps of the window itself."""
        maps = torch.rot90(maps, -turns, (-2, -1))
        if self.vectors:
            parts = list(maps.unbind(1))
            for first, second in self.vectors:
                y, x = parts[first], parts[second]
                y, x = ((y, x), (x, -y), (-y, -x), (-x, y))[turns]
                parts[first], parts[second] = y, -x if mirrored else x
            maps = torch.stack(parts, dim=1)
        return maps.flip(-1) if mirrored else maps


def averaged(model: nn.Module, views: int, *, vectors: Sequence[tuple[int, int]] = ()) -> nn.Module:
    """The network itself for one view, else wrapped in `AveragedViews`."""
    return model if views == 1 else AveragedViews(model, views, vectors=vectors)
