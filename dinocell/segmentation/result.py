"""Result of segmenting one plane: labels, the maps they come from, and what can be measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinocell.core.arrays import Float32
from dinocell.core.errors import ConfigError
from dinocell.images.mapped import highest, release
from dinocell.images.planes import InputPlane
from dinocell.labels.table import cell_table
from dinocell.objectives import Objective
from dinocell.predict.large.regions import ScaledMaps
from dinocell.segmentation.notes import Note


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """Cells of one plane.

    Attributes:
        labels: (H, W) uint16, uint32 past 65,535 cells; 1…n, 0 = background; at the input's size.
        maps: (K, H, W) float32, the network's raw output; None where nothing was predicted (a constant image).
        objective: meaning of the maps.
        plane: the plane that was segmented.
        notes: sentences that the user should know about this plane.
        embeddings: (n, D) float32, the mean patch token of each cell, in the order of `table()`; None unless asked for.
    """

    labels: NDArray[Any]
    maps: Float32 | None
    objective: Objective
    plane: InputPlane
    notes: tuple[Note, ...] = ()
    embeddings: Float32 | None = None

    @property
    def count(self) -> int:
        """Number of cells."""
        return highest(self.labels)

    @property
    def flows(self) -> Float32:
        """(2, H, W) float32, dy then dx at unit scale; zeros for objectives without flows."""
        flows = None if self.maps is None else self.objective.vectors(self.maps)
        return np.zeros((2, *self.labels.shape), np.float32) if flows is None else flows

    @property
    def probability(self) -> Float32:
        """(H, W) float32 in [0, 1]: that a pixel belongs to a cell (the distance map for the distance objective)."""
        if self.maps is None:
            return np.zeros(self.labels.shape, np.float32)
        return self.objective.cell_probability(self.maps)

    def table(self) -> pd.DataFrame:
        """Measure each cell, one row per cell: see `dinocell.labels.table.cell_table`."""
        probability = self.probability if self.maps is None else _Probability(self.maps, self.objective)
        return cell_table(self.labels, self.plane.channels, probability, self.plane.pixel_size)

    def embedding_table(self) -> pd.DataFrame:
        """List the embeddings, one row per cell: `label`, then `e0` … of its embedding.

        Raises:
            ConfigError: they were not asked for (`SegmentOptions.embeddings`).
        """
        if self.embeddings is None:
            raise ConfigError("embeddings: none were made; segment with embeddings=True")
        numbers = np.unique(self.labels)
        names = [f"e{number}" for number in range(self.embeddings.shape[1])]
        table = pd.DataFrame(self.embeddings, columns=names)
        table.insert(0, "label", numbers[numbers > 0].astype(np.int64))
        return table


class _Probability:
    """`cell_probability` of the rows asked for, so that measuring a large image never loads all of it."""

    def __init__(self, maps: Float32 | ScaledMaps, objective: Objective) -> None:
        self._maps, self._objective = maps, objective
        self.shape: tuple[int, ...] = maps.shape[1:]

    def __getitem__(self, rows: slice) -> Float32:
        found = self._objective.cell_probability(self._maps[:, rows])
        self._maps.drop() if isinstance(self._maps, ScaledMaps) else release(self._maps)
        return found
