"""One number for one pair of label images: the short way to each metric.

Each function builds the table of overlaps again; `score_image` gives all of them from one table.
"""

from typing import Any

from numpy.typing import NDArray

from dinocell.metrics.ctc import det_value, detection_errors, seg_sum
from dinocell.metrics.matching import find_overlaps, match_by_iou
from dinocell.metrics.mma import mma_areas
from dinocell.metrics.scores import score_image

Labels = NDArray[Any]


def maximum_matching_accuracy(labels: Labels, predictions: Labels) -> float:
    """MMA = Σ|G∩P| over the one-to-one matching of maximum total intersection / |∪G ∪ ∪P| (paper eq. 4).

    `labels` and `predictions` are label images of one shape, 0 = background. In [0, 1]; both empty → 1, one empty → 0.
    """
    intersection, union = mma_areas(find_overlaps(labels, predictions))
    return intersection / union if union else 1.0


def seg(labels: Labels, predictions: Labels) -> float:
    """SEG = Σ J(R, S) / number of all reference objects, with S the object covering more than half of R (Maška 2014).

    `labels` and `predictions` are label images of one shape, 0 = background. In [0, 1]; both empty → 1, one empty → 0.
    False positives do not count: read it beside `det`.
    """
    overlaps = find_overlaps(labels, predictions)
    if not len(overlaps.truth_ids):
        return float(not len(overlaps.prediction_ids))
    return seg_sum(overlaps) / len(overlaps.truth_ids)


def det(labels: Labels, predictions: Labels) -> float:
    """DET = 1 − min(A, A₀)/A₀, A = 5·splits + 10·misses + false detections, A₀ = 10·reference objects (Matula 2015).

    `labels` and `predictions` are label images of one shape, 0 = background. In [0, 1]; both empty → 1, one empty → 0.
    """
    overlaps = find_overlaps(labels, predictions)
    errors = detection_errors(overlaps)
    return det_value(splits=errors.splits, misses=errors.misses, false=errors.false, n_truth=len(overlaps.truth_ids))


def average_precision(labels: Labels, predictions: Labels, threshold: float = 0.5) -> float:
    """AP = TP / (TP + FP + FN), TP = pairs matched one to one with IoU >= `threshold` (as Cellpose and StarDist).

    `labels` and `predictions` are label images of one shape, 0 = background. In [0, 1]; both empty → 1, one empty → 0.
    Raises ValueError for a threshold outside (0, 1].
    """
    overlaps = find_overlaps(labels, predictions)
    matches = len(match_by_iou(overlaps, threshold))
    total = len(overlaps.truth_ids) + len(overlaps.prediction_ids) - matches
    return matches / total if total else 1.0


def panoptic_quality(labels: Labels, predictions: Labels) -> float:
    """PQ = Σ IoU of matches / (TP + FP/2 + FN/2), matches at IoU > 0.5 (Kirillov et al. 2019, eq. 1).

    `labels` and `predictions` are label images of one shape, 0 = background. In [0, 1]; both empty → 1, one empty → 0.
    """
    return score_image(labels, predictions).panoptic_quality


def mean_matched_iou(labels: Labels, predictions: Labels) -> float:
    """Mean IoU of the pairs with IoU > 0.5, whatever was missed; 0 without a match, 1 where both images are empty."""
    return score_image(labels, predictions).mean_matched_iou


def count_error(labels: Labels, predictions: Labels) -> int:
    """Predicted minus true objects: positive where too many were found."""
    overlaps = find_overlaps(labels, predictions)
    return len(overlaps.prediction_ids) - len(overlaps.truth_ids)
