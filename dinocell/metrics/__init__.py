"""Segmentation metrics on label images: NumPy and SciPy only. See docs/metrics.md."""

from dinocell.metrics.bootstrap import Interval, difference_intervals, score_intervals
from dinocell.metrics.functions import (
    average_precision,
    count_error,
    det,
    maximum_matching_accuracy,
    mean_matched_iou,
    panoptic_quality,
    seg,
)
from dinocell.metrics.matching import Overlaps, find_overlaps, match_by_iou, maximum_weight_matching
from dinocell.metrics.scores import METRICS, ImageScores, macro_mean, pool, score_image, score_overlaps
from dinocell.metrics.semantic import SemanticScores, pool_semantic, semantic_scores

__all__ = [
    "METRICS",
    "ImageScores",
    "Interval",
    "Overlaps",
    "SemanticScores",
    "average_precision",
    "count_error",
    "det",
    "difference_intervals",
    "find_overlaps",
    "macro_mean",
    "match_by_iou",
    "maximum_matching_accuracy",
    "maximum_weight_matching",
    "mean_matched_iou",
    "panoptic_quality",
    "pool",
    "pool_semantic",
    "score_image",
    "score_intervals",
    "score_overlaps",
    "seg",
    "semantic_scores",
]
