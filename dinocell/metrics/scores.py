"""Scores of one image or of many: additive counts, the metrics computed from them, pooled and macro means.

Edge rules of every metric: both images empty → 1; exactly one empty → 0. An image without background keeps every label.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.metrics.ctc import det_value, detection_errors, seg_sum
from dinocell.metrics.matching import Overlaps, find_overlaps, match_by_iou
from dinocell.metrics.mma import mma_areas

METRICS = ("SEG", "DET", "MMA", "AP50", "AP75", "AP90", "PQ")


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Counts of one image, or the sums of them over several (see `pool`). Areas are in pixels.

    Attributes:
        n_images: images summed.
        n_truth: reference objects. n_predictions: predicted objects.
        seg_sum: Σ J(R, S) of SEG.
        det_splits, det_misses, det_false: NS, FN, FP of DET.
        mma_intersection, mma_union: numerator and denominator of MMA.
        tp50, tp75, tp90: matches with IoU >= 0.5, 0.75, 0.9.
        pq_matches, pq_iou_sum: number and summed IoU of the (unique) matches with IoU > 0.5.
        absolute_count_error: Σ |predicted − true objects| over the images.
        foreground_tp, foreground_fp, foreground_fn, pixels: foreground against background, in pixels.
    """

    n_images: int = 1
    n_truth: int
    n_predictions: int
    seg_sum: float
    det_splits: int
    det_misses: int
    det_false: int
    mma_intersection: int
    mma_union: int
    tp50: int
    tp75: int
    tp90: int
    pq_matches: int
    pq_iou_sum: float
    absolute_count_error: int
    foreground_tp: int
    foreground_fp: int
    foreground_fn: int
    pixels: int

    @property
    def seg(self) -> float:
        """SEG: mean J over all reference objects, 0 for unmatched ones."""
        return self._ratio(self.seg_sum, self.n_truth)

    @property
    def det(self) -> float:
        """DET: 1 − cost of the corrections over the cost of drawing every reference object."""
        return det_value(splits=self.det_splits, misses=self.det_misses, false=self.det_false, n_truth=self.n_truth)

    @property
    def mma(self) -> float:
        """MMA: matched intersection over the union of all foreground."""
        return self._ratio(self.mma_intersection, self.mma_union)

    @property
    def panoptic_quality(self) -> float:
        """PQ = Σ IoU of matches / (TP + FP/2 + FN/2), matches at IoU > 0.5."""
        return self._ratio(2 * self.pq_iou_sum, self.n_truth + self.n_predictions)

    @property
    def mean_matched_iou(self) -> float:
        """Mean IoU of the matches at IoU > 0.5 (segmentation quality of PQ); 0 without a match."""
        return self._ratio(self.pq_iou_sum, self.pq_matches)

    @property
    def count_error(self) -> int:
        """Predicted minus true objects (positive: too many)."""
        return self.n_predictions - self.n_truth

    def metrics(self) -> dict[str, float]:
        """The headline metrics by name, each in [0, 1]."""
        return {
            "SEG": self.seg,
            "DET": self.det,
            "MMA": self.mma,
            "AP50": self._average_precision(self.tp50),
            "AP75": self._average_precision(self.tp75),
            "AP90": self._average_precision(self.tp90),
            "PQ": self.panoptic_quality,
        }

    def foreground_metrics(self) -> dict[str, float]:
        """Foreground against background: IoU, Dice, precision, recall and accuracy, each in [0, 1]."""
        tp, fp, fn = self.foreground_tp, self.foreground_fp, self.foreground_fn
        return {
            "IoU": self._ratio(tp, tp + fp + fn),
            "Dice": self._ratio(2 * tp, 2 * tp + fp + fn),
            "precision": self._ratio(tp, tp + fp),
            "recall": self._ratio(tp, tp + fn),
            "accuracy": (self.pixels - fp - fn) / self.pixels if self.pixels else 1.0,
        }

    def _average_precision(self, tp: int) -> float:
        return self._ratio(tp, self.n_truth + self.n_predictions - tp)

    def _ratio(self, numerator: float, denominator: float) -> float:
        if denominator:
            return float(numerator / denominator)
        return 1.0 if self.n_truth == 0 and self.n_predictions == 0 else 0.0


def score_image(labels: NDArray[Any], predictions: NDArray[Any], ignore: NDArray[Any] | None = None) -> ImageScores:
    """Score one predicted label image against the truth; one table of overlaps serves every metric.

    Args:
        labels: integer (or boolean) label image, any shape, 0 = background, ids need not be consecutive.
        predictions: the prediction, same shape.
        ignore: nonzero = pixel left out of both images, same shape. Leaving out all unlabelled pixels hides false
            positives, so report such a score beside the raw one, never instead of it.

    Raises:
        ValueError: shapes differ or the images are not label images.
    """
    return score_overlaps(find_overlaps(labels, predictions, ignore))


def score_overlaps(overlaps: Overlaps) -> ImageScores:
    """Score a table of overlaps."""
    n_truth, n_predictions = len(overlaps.truth_ids), len(overlaps.prediction_ids)
    errors = detection_errors(overlaps)
    mma_intersection, mma_union = mma_areas(overlaps)
    ious = overlaps.ious
    strict = ious[ious > 0.5]
    foreground_tp = int(overlaps.intersections.sum())
    return ImageScores(
        n_truth=n_truth,
        n_predictions=n_predictions,
        seg_sum=seg_sum(overlaps),
        det_splits=errors.splits,
        det_misses=errors.misses,
        det_false=errors.false,
        mma_intersection=mma_intersection,
        mma_union=mma_union,
        tp50=len(match_by_iou(overlaps, 0.5)),
        tp75=int(np.count_nonzero(ious >= 0.75)),
        tp90=int(np.count_nonzero(ious >= 0.9)),
        pq_matches=len(strict),
        pq_iou_sum=float(strict.sum()),
        absolute_count_error=abs(n_predictions - n_truth),
        foreground_tp=foreground_tp,
        foreground_fp=int(overlaps.prediction_areas.sum()) - foreground_tp,
        foreground_fn=int(overlaps.truth_areas.sum()) - foreground_tp,
        pixels=overlaps.pixels,
    )


def pool(scores: Iterable[ImageScores]) -> ImageScores:
    """Sum the counts of several images (micro average, as the CTC programs do): every object or pixel weighs the same.

    Raises:
        ValueError: there is no image.
    """
    summed = list(scores)
    if not summed:
        raise ValueError("no images to pool")
    return ImageScores(**{field.name: sum(getattr(s, field.name) for s in summed) for field in fields(ImageScores)})


def macro_mean(scores: Sequence[ImageScores]) -> dict[str, float]:
    """Mean of each image's metrics (macro average): every image weighs the same.

    Raises:
        ValueError: there is no image.
    """
    if not scores:
        raise ValueError("no images to average")
    rows = [score.metrics() for score in scores]
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}
