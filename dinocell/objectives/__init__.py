"""Objectives: targets, loss and decoding of what the decoder predicts."""

from dinocell.objectives import flows
from dinocell.objectives.base import Objective, ObjectiveConfig, build_objective

__all__ = ["Objective", "ObjectiveConfig", "build_objective", "flows"]
