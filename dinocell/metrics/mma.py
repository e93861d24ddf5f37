"""Maximum Matching Accuracy (paper §3.4.1, eq. 4)."""

import numpy as np

from dinocell.metrics.matching import Overlaps, maximum_weight_matching


def mma_areas(overlaps: Overlaps) -> tuple[int, int]:
    """(Σ|G∩P| over the matching of maximum total intersection, |∪G ∪ ∪P|), both in pixels.

    The matching is one to one; MMA is the first over the second.
    """
    weights = overlaps.intersections.astype(np.float64)  # exact below 2**53 pixels
    matched = maximum_weight_matching(overlaps.rows, overlaps.columns, weights)
    union = overlaps.truth_areas.sum() + overlaps.prediction_areas.sum() - overlaps.intersections.sum()
    return int(overlaps.intersections[matched].sum()), int(union)
