"""Machinery shared by both stages: checkpoints, signals, processes, optimizers, progress. It knows no model."""
