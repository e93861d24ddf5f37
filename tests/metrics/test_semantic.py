"""Semantic metrics against hand counts, their identities and the edge rules."""

import numpy as np
import pytest

from dinocell.metrics import pool_semantic, score_image, semantic_scores

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 0]])
PREDICTED = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [2, 2, 0, 0]])


def test_hand_counted_classes() -> None:
    """Class 1: TP 3, FP 1, FN 1. Class 2: TP 2, FP 0, FN 1. Nine of twelve pixels are right."""
    scores = semantic_scores(TRUTH, PREDICTED, n_classes=3)
    one, two = scores.per_class()[1], scores.per_class()[2]
    assert one == pytest.approx({"IoU": 3 / 5, "Dice": 6 / 8, "precision": 3 / 4, "recall": 3 / 4, "accuracy": 10 / 12})
    assert two == pytest.approx({"IoU": 2 / 3, "Dice": 4 / 5, "precision": 1, "recall": 2 / 3, "accuracy": 11 / 12})
    assert scores.mean()["accuracy"] == pytest.approx(9 / 12)
    assert scores.mean()["IoU"] == pytest.approx((4 / 7 + 3 / 5 + 2 / 3) / 3)


def test_absent_class_is_one_and_left_out_of_the_mean() -> None:
    scores = semantic_scores(TRUTH, PREDICTED, n_classes=4)
    assert set(scores.per_class()[3].values()) == {1.0}
    assert scores.mean() == semantic_scores(TRUTH, PREDICTED, n_classes=3).mean()


def test_class_in_one_image_only_is_zero() -> None:
    scores = semantic_scores(np.zeros((3, 3), int), np.ones((3, 3), int)).per_class()
    for value in (0, 1):
        assert scores[value] == {"IoU": 0, "Dice": 0, "precision": 0, "recall": 0, "accuracy": 0}


def test_pooling_equals_one_large_image_and_ignoring_equals_cutting() -> None:
    left, right = semantic_scores(TRUTH, PREDICTED, 3), semantic_scores(PREDICTED, TRUTH, 3)
    whole = semantic_scores(np.hstack([TRUTH, PREDICTED]), np.hstack([PREDICTED, TRUTH]), 3)
    assert pool_semantic([left, right]).per_class() == whole.per_class()
    ignore = np.zeros_like(TRUTH)
    ignore[2] = 1
    assert (
        semantic_scores(TRUTH, PREDICTED, 3, ignore).per_class()
        == semantic_scores(TRUTH[:2], PREDICTED[:2], 3).per_class()
    )


def test_foreground_metrics_of_instances_are_the_semantic_ones() -> None:
    binary = semantic_scores(TRUTH > 0, PREDICTED > 0).per_class()[1]
    assert score_image(TRUTH, PREDICTED).foreground_metrics() == pytest.approx(binary)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        semantic_scores(TRUTH, PREDICTED[:2], 3)
    with pytest.raises(ValueError, match="prediction: classes 0–5"):
        semantic_scores(TRUTH, PREDICTED * 5 // 2, 3)
    with pytest.raises(ValueError, match="no images"):
        pool_semantic([])
    with pytest.raises(ValueError, match="different classes"):
        pool_semantic([semantic_scores(TRUTH, PREDICTED, 3), semantic_scores(TRUTH, PREDICTED, 4)])
