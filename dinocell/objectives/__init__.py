"""Objectives: targets, loss and decoding of what the decoder predicts."""

from dinocell.objectives import flows
from dinocell.objectives.base import Frame, Objective, ObjectiveConfig, build_objective

__all__ = ["Frame", "Objective", "ObjectiveConfig", "build_objective", "flows"]
