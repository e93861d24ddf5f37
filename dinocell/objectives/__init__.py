"""Objectives: targets, loss and decoding of what the decoder predicts."""

from dinocell.objectives import flows
from dinocell.objectives.base import Decoded, Frame, Objective, ObjectiveConfig, total_loss
from dinocell.objectives.build import OBJECTIVES, build_objective

__all__ = ["OBJECTIVES", "Decoded", "Frame", "Objective", "ObjectiveConfig", "build_objective", "flows", "total_loss"]
