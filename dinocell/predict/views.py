"""Test-time augmentation: the average over turned views, in each of which the network errs differently."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dinocell.images.geometry.symmetry import Turn

ORDER = tuple(Turn(number=number) for number in (0, 2, 5, 7, 1, 3, 4, 6))
"""The first 2, 4 and 8 are groups, so that the average of a turned input is the turned average."""


class AveragedViews(nn.Module):
    """A network whose maps are averages over several views of each window, turned back.

    Args:
        model: maps [B, 1, h, w] to [B, K, h, w].
        views: 1, 2, 4 or 8; the time grows by as much.
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
        for turn in self.views:
            maps = turn.inverse.apply_tensor(self.model(turn.apply_tensor(z)).float())
            turn.inverse.turn_vectors(maps, self.vectors)
            total = maps if total is None else total + maps
        assert total is not None
        return total / len(self.views)


def averaged(model: nn.Module, views: int, *, vectors: Sequence[tuple[int, int]] = ()) -> nn.Module:
    """Return the network itself for one view, else wrapped in `AveragedViews`."""
    return model if views == 1 else AveragedViews(model, views, vectors=vectors)
