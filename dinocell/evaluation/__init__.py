"""Scoring of label images: folders of several tools, or a model on a dataset. See docs/metrics.md."""

from dinocell.evaluation.predictions import evaluate_model, predict
from dinocell.evaluation.results import format_table
from dinocell.evaluation.scoring import score_folders

__all__ = ["evaluate_model", "format_table", "predict", "score_folders"]
