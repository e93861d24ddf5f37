"""The overlap table and the matchings equal their brute-force definitions."""

import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from dinocell.metrics import matching
from dinocell.metrics.matching import find_overlaps, match_by_iou, maximum_weight_matching


def random_labels(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> np.ndarray:
    """Blocky random labels with gaps in the ids: every kind of overlap occurs."""
    coarse = rng.integers(0, n + 1, [max(1, s // 3) for s in shape])
    for axis, size in enumerate(shape):
        coarse = np.repeat(coarse, 4, axis=axis).take(range(size), axis=axis)
    return coarse * 7


@pytest.mark.parametrize("shape", [(40, 60), (1, 50), (50, 1), (12, 13, 14), (300,)])
@pytest.mark.parametrize("strip", [16, 1 << 19])
def test_table_equals_pixel_counting(shape: tuple[int, ...], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_STRIP_PIXELS", strip)
    rng = np.random.default_rng(0)
    truth, predicted = random_labels(rng, shape, 9), random_labels(rng, shape, 11)
    ignore = rng.random(shape) < 0.2
    table = find_overlaps(truth, predicted, ignore)
    truth[ignore] = predicted[ignore] = 0
    assert table.pixels == np.count_nonzero(~ignore)
    assert dict(zip(table.truth_ids, table.truth_areas, strict=True)) == {
        i: np.count_nonzero(truth == i) for i in np.unique(truth) if i
    }
    assert dict(zip(table.prediction_ids, table.prediction_areas, strict=True)) == {
        i: np.count_nonzero(predicted == i) for i in np.unique(predicted) if i
    }
    found = {
        (table.truth_ids[r], table.prediction_ids[c]): n
        for r, c, n in zip(table.rows, table.columns, table.intersections, strict=True)
    }
    expected = {
        (i, j): np.count_nonzero((truth == i) & (predicted == j))
        for i, j in itertools.product(table.truth_ids, table.prediction_ids)
    }
    assert found == {pair: n for pair, n in expected.items() if n}


@pytest.mark.parametrize("distinct", [1, 300, 50_000])
def test_sums_by_key_are_those_of_sorting(distinct: int) -> None:
    """Also where nearly every key is another one, so that many share a slot of the hash table."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**62, distinct)[rng.integers(0, distinct, 20_000)]
    counts = rng.integers(1, 1000, 20_000)
    found, sums = matching._sum_by_key(keys, counts)
    expected, inverse = np.unique(keys, return_inverse=True)
    assert np.array_equal(found, expected)
    assert sums.tolist() == [int(n) for n in np.bincount(inverse, counts)]


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, float]
)
def test_every_label_dtype_counts_alike(dtype: type) -> None:
    truth = np.zeros((6, 6), dtype)
    truth[1:4, 1:4] = 1
    table = find_overlaps(truth, truth)
    assert (table.truth_areas.tolist(), table.intersections.tolist(), table.pixels) == ([9], [9], 36)


def test_memory_stays_below_twelve_bytes_a_pixel() -> None:
    """Runs are held strip by strip: beyond the two images, little is needed at any size."""
    truth = np.arange(1, 4097, dtype=np.int32).reshape(64, 64).repeat(16, 0).repeat(16, 1)
    predicted = np.roll(truth, 5, axis=1)
    tracemalloc.start()
    table = find_overlaps(truth, predicted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table.intersections) == 2 * 4096
    assert peak < 12 * truth.size


def test_ids_beyond_32_bits_and_more_than_65535_objects() -> None:
    ids = np.arange(70_000, dtype=np.int64).reshape(280, 250) + 1
    table = find_overlaps(ids + 2**40, ids)
    assert len(table.truth_ids) == len(table.intersections) == 70_000
    assert (table.ious == 1).all()


@pytest.mark.parametrize(
    ("truth", "predicted", "ignore", "words"),
    [
        (np.zeros((4, 4), int), np.zeros((4, 5), int), None, r"\(4, 4\).*\(4, 5\)"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), np.zeros((2, 4), int), "ignore"),
        (np.full((4, 4), -1), np.zeros((4, 4), int), None, "labels: negative label -1"),
        (np.zeros((4, 4), int), np.full((4, 4), 0.5), None, "predictions: values are not whole"),
        (np.zeros((4, 4), int), np.full((4, 4), np.nan), None, "predictions: values are not whole"),
        (np.zeros((4, 4), complex), np.zeros((4, 4), int), None, "complex128"),
        (np.full((4, 4), 2**63, np.uint64), np.zeros((4, 4), int), None, "beyond"),
    ],
)
def test_what_is_no_label_image_is_refused(
    truth: np.ndarray, predicted: np.ndarray, ignore: np.ndarray | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        find_overlaps(truth, predicted, ignore)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.05, 1),
    st.integers(1, 50),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1 << 12]),
)
def test_matching_reaches_the_dense_optimum(
    n_rows: int, n_columns: int, density: float, top: int, seed: int, small_table: int
) -> None:
    """Equal total weight to SciPy's dense assignment of everything; few distinct weights, so ties abound.

    Our own small tables are solved by it too; a limit of 0 entries sends them to the sparse solver.
    """
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, top + 1, (n_rows, n_columns)) * (rng.random((n_rows, n_columns)) < density)
    rows, columns = np.nonzero(dense)
    with mock.patch.object(matching, "_SMALL_TABLE", small_table):
        chosen = maximum_weight_matching(rows, columns, dense[rows, columns].astype(float))
    assert len(set(rows[chosen])) == len(set(columns[chosen])) == len(chosen)
    assert dense[rows[chosen], columns[chosen]].sum() == dense[linear_sum_assignment(dense, maximize=True)].sum()


def test_greedy_is_not_enough() -> None:
    """Taking the heaviest pair (5) first leaves 5 + 0; the optimum is 4 + 4."""
    rows, columns = np.array([0, 0, 1]), np.array([0, 1, 0])
    assert maximum_weight_matching(rows, columns, np.array([5.0, 4.0, 4.0])).tolist() == [1, 2]


def test_half_iou_is_matched_once() -> None:
    """Two halves of one object both have IoU 0.5: one match, one false positive."""
    truth = np.ones((2, 4), int)
    predicted = np.array([[1, 1, 2, 2]] * 2)
    assert len(match_by_iou(find_overlaps(truth, predicted), 0.5)) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2, 0.5, 0.51, 0.75]))
def test_iou_matches_are_as_many_as_an_assignment_finds(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    table = find_overlaps(random_labels(rng, (24, 24), 12), random_labels(rng, (24, 24), 12))
    dense = np.zeros((len(table.truth_ids), len(table.prediction_ids)))
    dense[table.rows, table.columns] = table.ious
    good = np.where(dense >= threshold, 1000 + dense, 0)
    matched = match_by_iou(table, threshold)
    best = linear_sum_assignment(good, maximize=True)
    assert len(matched) == np.count_nonzero(good[best])
    assert table.ious[matched].sum() == pytest.approx(dense[best][good[best] > 0].sum())


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1])
def test_threshold_outside_the_iou_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        match_by_iou(find_overlaps(np.ones((2, 2), int), np.ones((2, 2), int)), threshold)
