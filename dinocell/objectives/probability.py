"""Cell probability from raw maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from dinocell.objectives import Objective
from dinocell.objectives.flows.objective import FlowsObjective
from dinocell.objectives.semantic import SemanticObjective

Float32 = npt.NDArray[np.float32]


def cell_probability(maps: Float32, objective: Objective) -> Float32:
    """(H, W) float32 in [0, 1] from raw maps (K, H, W)."""
    if isinstance(objective, FlowsObjective):
        return objective.split(maps)[1]
    if isinstance(objective, SemanticObjective):
        cell = special.expit(maps[0]) if objective.binary else 1 - special.softmax(maps, axis=0)[0]
        return np.asarray(cell, np.float32)
    return np.clip(maps[0], 0, 1)
