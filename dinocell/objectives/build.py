"""Table of the objectives: the class of each `objective.kind`."""

from __future__ import annotations

from collections.abc import Mapping

from dinocell.core.errors import ConfigError
from dinocell.objectives.base import Objective, ObjectiveConfig
from dinocell.objectives.distance import DistanceObjective
from dinocell.objectives.flows.objective import FlowsObjective
from dinocell.objectives.semantic import SemanticObjective

OBJECTIVES: Mapping[str, type[Objective]] = {
    objective.name: objective for objective in (FlowsObjective, DistanceObjective, SemanticObjective)
}


def build_objective(config: ObjectiveConfig) -> Objective:
    """Make the objective that `config.kind` names.

    Raises:
        ConfigError: no objective has that name.
    """
    if config.kind not in OBJECTIVES:
        raise ConfigError(f"objective.kind: unknown {config.kind!r}; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[config.kind](config)
