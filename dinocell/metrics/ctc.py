"""SEG and DET of the Cell Tracking Challenge (Maška et al. 2014; Matula et al. 2015).

A reference object R is matched to the segmented object S that covers more than half of it: |R∩S| > 0.5·|R|. Each R has
at most one such S; one S may be matched to several R.
"""

from dataclasses import dataclass

import numpy as np

from dinocell.metrics.matching import IntArray, Overlaps

SPLIT_COST, MISS_COST, FALSE_COST = 5, 10, 1  # AOGM-D weights: split a node, add a node, delete a node


@dataclass(frozen=True, kw_only=True)
class DetectionErrors:
    """The node operations that turn the prediction into the reference.

    Attributes:
        splits: NS, the sum of m − 1 over predicted objects that cover m ≥ 1 reference objects.
        misses: FN, reference objects that no predicted object covers.
        false: FP, predicted objects that cover no reference object.
    """

    splits: int
    misses: int
    false: int


def coverage_matches(overlaps: Overlaps) -> IntArray:
    """Indices of the pairs in which the prediction covers more than half of the reference object (strictly)."""
    return np.flatnonzero(2 * overlaps.intersections > overlaps.truth_areas[overlaps.rows])


def seg_sum(overlaps: Overlaps) -> float:
    """Σ J(R, S) over the matched reference objects; SEG is this over the number of *all* reference objects."""
    return float(overlaps.ious[coverage_matches(overlaps)].sum())


def detection_errors(overlaps: Overlaps) -> DetectionErrors:
    """Splits, misses and false detections of DET."""
    matches = coverage_matches(overlaps)
    covering = len(np.unique(overlaps.columns[matches]))
    return DetectionErrors(
        splits=len(matches) - covering,
        misses=len(overlaps.truth_ids) - len(matches),
        false=len(overlaps.prediction_ids) - covering,
    )


def det_value(*, splits: int, misses: int, false: int, n_truth: int) -> float:
    """DET = 1 − min(A, A₀)/A₀, A = 5·NS + 10·FN + FP, A₀ = 10·|R|; with no reference: 1 if nothing is found, else 0."""
    cost = SPLIT_COST * splits + MISS_COST * misses + FALSE_COST * false
    from_nothing = MISS_COST * n_truth
    if not from_nothing:
        return 1.0 if cost == 0 else 0.0
    return 1 - min(cost, from_nothing) / from_nothing
