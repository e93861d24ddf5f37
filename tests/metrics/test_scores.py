"""Each metric on images whose score is known by hand, and the edge rules."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinocell import metrics
from dinocell.metrics import ImageScores, macro_mean, pool, score_image

INSTANCE_METRICS: list[Callable[..., float]] = [
    metrics.maximum_matching_accuracy,
    metrics.seg,
    metrics.det,
    metrics.average_precision,
    metrics.panoptic_quality,
    metrics.mean_matched_iou,
]


def canvas(*boxes: tuple[int, int, int, int], size: int = 60) -> np.ndarray:
    """Label image of rectangles (top, left, height, width), ids 1, 2, … in order."""
    labels = np.zeros((size, size), np.int32)
    for index, (y, x, height, width) in enumerate(boxes, start=1):
        labels[y : y + height, x : x + width] = index
    return labels


EMPTY = canvas()
TWO = canvas((5, 5, 10, 10), (30, 30, 10, 10))


@pytest.mark.parametrize("metric", INSTANCE_METRICS)
def test_identity_and_edge_rules(metric: Callable[..., float]) -> None:
    full = np.arange(1, 17).reshape(4, 4)  # no background at all: every label counts
    assert metric(TWO, TWO) == 1
    assert metric(full, full) == 1
    assert metric(EMPTY, EMPTY) == 1
    assert metric(TWO, EMPTY) == 0
    assert metric(EMPTY, TWO) == 0


@pytest.mark.parametrize("metric", INSTANCE_METRICS)
def test_ids_carry_no_meaning(metric: Callable[..., float]) -> None:
    predicted = canvas((5, 7, 10, 10), (31, 30, 10, 10), (50, 50, 4, 4))
    renamed = np.array([0, 900, 17, 65_000])[predicted]
    assert metric(TWO, renamed) == metric(TWO, predicted)


@pytest.mark.parametrize("shift", range(11))
def test_shifted_square(shift: int) -> None:
    """A 10 × 10 square moved by s: intersection 10(10 − s), union 10(10 + s)."""
    truth, predicted = canvas((20, 20, 10, 10)), canvas((20, 20 + shift, 10, 10))
    iou = (10 - shift) / (10 + shift)
    assert metrics.maximum_matching_accuracy(truth, predicted) == pytest.approx(iou)
    covered = 10 - shift > 5  # CTC: more than half of the reference
    assert metrics.seg(truth, predicted) == pytest.approx(iou if covered else 0)
    assert metrics.det(truth, predicted) == (1 if covered else 0)  # uncovered: FN 10 + FP 1 > 10
    for threshold in (0.5, 0.75, 0.9):
        assert metrics.average_precision(truth, predicted, threshold) == float(iou >= threshold)
    assert metrics.panoptic_quality(truth, predicted) == pytest.approx(iou if iou > 0.5 else 0)
    assert metrics.mean_matched_iou(truth, predicted) == pytest.approx(iou if iou > 0.5 else 0)


def test_ctc_match_is_strict() -> None:
    """Exactly half of the reference is no match."""
    truth = canvas((20, 20, 10, 10))
    assert metrics.seg(truth, canvas((20, 20, 5, 10))) == 0
    assert metrics.seg(truth, canvas((20, 20, 6, 10))) == pytest.approx(0.6)


def test_seg_divides_by_all_reference_objects() -> None:
    """One of two found perfectly: 0.5, not 1 (the mean over matched ones only)."""
    assert metrics.seg(TWO, canvas((5, 5, 10, 10))) == 0.5


def test_one_prediction_over_three_cells() -> None:
    """A merge: one S covers three R. NS = 2, so A = 10 of A₀ = 30."""
    truth = canvas((10, 10, 10, 10), (10, 20, 10, 10), (10, 30, 10, 10))
    merged = canvas((10, 10, 10, 30))
    assert metrics.det(truth, merged) == pytest.approx(1 - 10 / 30)
    assert metrics.seg(truth, merged) == pytest.approx(1 / 3)  # each J is 1/3
    assert metrics.maximum_matching_accuracy(truth, merged) == pytest.approx(1 / 3)  # one R only
    assert metrics.average_precision(truth, merged) == 0
    assert metrics.count_error(truth, merged) == -2


def test_one_cell_in_two_pieces() -> None:
    """A split 60:40: the larger piece covers the cell, the other is a false positive."""
    truth = canvas((10, 10, 10, 10))
    pieces = canvas((10, 10, 6, 10), (16, 10, 4, 10))
    assert metrics.det(truth, pieces) == pytest.approx(1 - 1 / 10)
    assert metrics.seg(truth, pieces) == pytest.approx(0.6)
    assert metrics.maximum_matching_accuracy(truth, pieces) == pytest.approx(0.6)
    assert metrics.average_precision(truth, pieces) == pytest.approx(1 / 2)  # TP 1, FP 1
    assert metrics.panoptic_quality(truth, pieces) == pytest.approx(0.6 / 1.5)
    assert metrics.count_error(truth, pieces) == 1


def test_det_weights_misses_false_detections_and_splits() -> None:
    """Four cells: two merged (NS 1), one missed (FN 1), one right, two spurious (FP 2): A = 5 + 10 + 2 of 40."""
    truth = canvas((0, 0, 10, 10), (0, 10, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10))
    predicted = canvas((0, 0, 10, 20), (40, 0, 10, 10), (20, 40, 5, 5), (30, 40, 5, 5))
    assert metrics.det(truth, predicted) == pytest.approx(1 - 17 / 40)


def test_det_never_falls_below_zero() -> None:
    spurious = canvas(*[(y, x, 3, 3) for y in range(0, 40, 4) for x in range(0, 40, 4)])
    assert metrics.det(canvas((50, 50, 5, 5)), spurious) == 0


def test_mma_prefers_the_best_total_over_the_best_pair() -> None:
    """G1 overlaps P1 by 50 and P2 by 40, G2 overlaps P1 by 40: crossing gives 80, the greedy choice 50."""
    truth, predicted = np.zeros((2, 1, 140), int)
    truth[0, 0:90], truth[0, 90:130] = 1, 2
    predicted[0, 40:130], predicted[0, 0:40] = 1, 2
    assert metrics.maximum_matching_accuracy(truth, predicted) == pytest.approx(80 / 130)


def test_iou_of_exactly_one_half_counts_for_ap_but_not_for_pq() -> None:
    """AP matches at IoU >= t (Cellpose, StarDist), PQ at IoU > 0.5 (Kirillov)."""
    truth, half = canvas((10, 10, 10, 10)), canvas((10, 10, 10, 5))
    assert metrics.average_precision(truth, half, 0.5) == 1
    assert metrics.panoptic_quality(truth, half) == 0


def test_ignore_mask_hides_false_positives() -> None:
    """The reason why masked scores stand beside the raw ones, never in their place.

    25 cells of 12 × 12, each predicted as 16 × 16, and 25 spurious cells: raw MMA is below one half, and leaving out
    every unlabelled pixel makes the same prediction perfect.
    """
    corners = [(y, x) for y in range(4, 200, 40) for x in range(4, 200, 40)]
    truth = canvas(*[(y + 2, x + 2, 12, 12) for y, x in corners], size=204)
    bloated = canvas(*[(y, x, 16, 16) for y, x in corners], *[(y + 20, x + 20, 12, 12) for y, x in corners], size=204)
    raw, masked = score_image(truth, bloated), score_image(truth, bloated, ignore=truth == 0)
    assert raw.mma == pytest.approx(144 / (256 + 144))
    assert raw.metrics()["AP50"] == pytest.approx(25 / 50)
    assert masked.mma == masked.seg == masked.det == masked.metrics()["AP90"] == 1
    assert masked.n_predictions == 25


def test_ignored_pixels_change_nothing_elsewhere() -> None:
    """An ignored cell and a prediction on it are no longer there."""
    predicted = canvas((5, 7, 10, 10), (30, 31, 9, 9))
    ignore = np.zeros_like(TWO)
    ignore[25:50, 25:50] = 255
    assert score_image(TWO, predicted, ignore) == _without_pixels(
        score_image(canvas((5, 5, 10, 10)), canvas((5, 7, 10, 10))), 625
    )


def _without_pixels(scores: ImageScores, n: int) -> ImageScores:
    return ImageScores(**{**vars(scores), "pixels": scores.pixels - n})


def test_pooled_weighs_objects_and_macro_weighs_images() -> None:
    """A crowded image with nothing found and a lone cell found: macro 1/2, pooled 1/10."""
    crowd = canvas(*[(5 * i, 5 * i, 4, 4) for i in range(9)])
    scores = [score_image(crowd, EMPTY), score_image(canvas((0, 0, 4, 4)), canvas((0, 0, 4, 4)))]
    assert macro_mean(scores) == {name: pytest.approx(0.5) for name in metrics.METRICS}
    pooled = pool(scores)
    assert [pooled.seg, pooled.det, pooled.mma] == pytest.approx([0.1] * 3)
    assert pooled.n_images == 2
    assert (pooled.count_error, pooled.absolute_count_error) == (-9, 9)


def test_count_errors_do_not_cancel_in_the_absolute_sum() -> None:
    pooled = pool([score_image(TWO, EMPTY), score_image(EMPTY, TWO)])
    assert (pooled.count_error, pooled.absolute_count_error) == (0, 4)


def test_empty_pairs_leave_the_pool_unchanged() -> None:
    scores = score_image(TWO, canvas((5, 7, 10, 10)))
    assert pool([scores, score_image(EMPTY, EMPTY)]).metrics() == scores.metrics()
    assert set(pool([score_image(EMPTY, EMPTY)] * 3).metrics().values()) == {1.0}


def test_pooling_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        pool([])
    with pytest.raises(ValueError, match="no images"):
        macro_mean([])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pooled_scores_equal_the_scores_of_the_images_side_by_side(seed: int) -> None:
    """Pooling is the score of one large image that holds them all (with ids kept apart)."""
    rng = np.random.default_rng(seed)
    pairs = [rng.integers(0, 6, (2, 5, 5)).repeat(3, axis=1).repeat(2, axis=2) for _ in range(3)]
    joined = np.concatenate([np.where(pair > 0, pair + 10 * i, 0) for i, pair in enumerate(pairs)], axis=2)
    assert pool(score_image(*pair) for pair in pairs).metrics() == pytest.approx(score_image(*joined).metrics())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_functions_agree_with_the_shared_table_and_any_orientation(seed: int, turns: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 7, (2, 6, 6)).repeat(4, axis=1).repeat(3, axis=2)
    scores = score_image(np.rot90(truth, turns), np.rot90(predicted, turns)).metrics()
    assert scores == pytest.approx(
        {
            "SEG": metrics.seg(truth, predicted),
            "DET": metrics.det(truth, predicted),
            "MMA": metrics.maximum_matching_accuracy(truth, predicted),
            "AP50": metrics.average_precision(truth, predicted),
            "AP75": metrics.average_precision(truth, predicted, 0.75),
            "AP90": metrics.average_precision(truth, predicted, 0.9),
            "PQ": metrics.panoptic_quality(truth, predicted),
        }
    )
