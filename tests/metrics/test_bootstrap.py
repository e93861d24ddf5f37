"""Bootstrap intervals against cases whose answer is known."""

import numpy as np
import pytest

from dinocell.metrics import METRICS, ImageScores, difference_intervals, macro_mean, pool, score_image, score_intervals


def scored(good: int, of: int = 10) -> ImageScores:
    """`of` equal cells, of which `good` are found exactly and the others not at all."""
    truth = np.zeros((of, 200), np.int32)
    truth[:, :100] = np.arange(1, of + 1)[:, None]
    return score_image(truth, np.where(truth <= good, truth, 0))


def test_values_are_the_plain_scores() -> None:
    run = [scored(3), scored(8, of=20), scored(0)]
    intervals = score_intervals([run])
    for name in METRICS:
        assert intervals["pooled"][name].value == pytest.approx(pool(run).metrics()[name])
        assert intervals["macro"][name].value == pytest.approx(macro_mean(run)[name])
        assert intervals["pooled"][name].low <= intervals["pooled"][name].value <= intervals["pooled"][name].high


def test_equal_images_leave_nothing_uncertain() -> None:
    for kind in score_intervals([[scored(4)] * 7]).values():
        for interval in kind.values():
            assert interval.low == pytest.approx(interval.value) == pytest.approx(interval.high)


def test_width_is_that_of_the_normal_approximation() -> None:
    good = np.random.default_rng(3).integers(0, 11, 400)
    interval = score_intervals([[scored(int(g)) for g in good]], resamples=4000)["macro"]["AP50"]
    spread = 1.96 * (good / 10).std() / np.sqrt(len(good))
    assert interval.value == pytest.approx(good.mean() / 10)
    assert interval.high - interval.value == pytest.approx(spread, rel=0.06)
    assert interval.value - interval.low == pytest.approx(spread, rel=0.06)


def test_pooled_and_macro_agree_where_images_are_alike_in_size() -> None:
    run = [scored(g) for g in (1, 5, 9, 4)]
    intervals = score_intervals([run])
    for bound in ("value", "low", "high"):
        assert getattr(intervals["pooled"]["MMA"], bound) == pytest.approx(getattr(intervals["macro"]["MMA"], bound))


def test_seeds_that_differ_widen_the_interval_to_their_range() -> None:
    intervals = score_intervals([[scored(2)] * 5, [scored(6)] * 5])
    assert (intervals["pooled"]["MMA"].low, intervals["pooled"]["MMA"].high) == pytest.approx((0.2, 0.6))
    assert intervals["pooled"]["MMA"].value == pytest.approx(0.4)


def test_a_difference_is_paired() -> None:
    hard_and_easy = [1, 9, 2, 8, 1, 9, 5, 5]
    first, second = [[scored(g) for g in hard_and_easy]], [[scored(g + 1) for g in hard_and_easy]]
    change = difference_intervals(first, second)["pooled"]["MMA"]
    assert (change.low, change.value, change.high) == pytest.approx((0.1, 0.1, 0.1))
    alone = score_intervals(second)["pooled"]["MMA"]
    assert alone.high - alone.low > 0.2
    back = difference_intervals(second, first)["macro"]["MMA"]
    assert back.value == pytest.approx(-0.1)


def test_shapes_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        score_intervals([[scored(1)], [scored(1), scored(2)]])
    with pytest.raises(ValueError, match="equal shapes"):
        difference_intervals([[scored(1)]], [[scored(1), scored(2)]])
    with pytest.raises(ValueError, match="equally many"):
        score_intervals([[]])
