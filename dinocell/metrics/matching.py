"""The sparse table of overlaps that every instance metric reads, and exact matchings on it.

Two label images overlap in few pairs of objects: about as many as there are objects. The table is built from runs of
equal labels (never a truth × prediction matrix), so time and memory grow with pixels and with overlapping pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_CELLS_A_RUN = 4  # a table of all pairs is made only up to this many entries for each run of pixels
_SMALL_TABLE = 1 << 12  # entries of a dense table of weights up to which SciPy's dense solver is the faster one
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads neighbouring keys (Knuth, TAOCP 6.4)
_STRIP_PIXELS = 1 << 19  # pixels whose runs are in memory at once: bounds the memory at any image size


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Every object of two label images and every pair that shares a pixel; background (0) is not an object.

    R objects in the truth, S in the prediction, P overlapping pairs.

    Attributes:
        truth_ids: [R] label values, ascending.
        truth_areas: [R] pixels of each object.
        prediction_ids: [S] label values, ascending.
        prediction_areas: [S] pixels of each object.
        rows: [P] index into the truth objects of each pair.
        columns: [P] index into the predicted objects of each pair.
        intersections: [P] shared pixels, all > 0.
        pixels: pixels compared (without ignored ones).
    """

    truth_ids: IntArray
    truth_areas: IntArray
    prediction_ids: IntArray
    prediction_areas: IntArray
    rows: IntArray
    columns: IntArray
    intersections: IntArray
    pixels: int

    @property
    def ious(self) -> FloatArray:
        """[P] intersection over union of each overlapping pair, in (0, 1]."""
        unions = self.truth_areas[self.rows] + self.prediction_areas[self.columns] - self.intersections
        return self.intersections / unions


def find_overlaps(labels: NDArray[Any], predictions: NDArray[Any], ignore: NDArray[Any] | None = None) -> Overlaps:
    """Count the pixels shared by each object of `labels` with each object of `predictions`.

    Args:
        labels: integer or boolean label image of any shape and any label values >= 0; 0 = background.
        predictions: the same for the prediction, of the same shape.
        ignore: nonzero where pixels are left out of both images, of the same shape; None compares every pixel.

    Raises:
        ValueError: shapes differ, a label is negative, or values are not whole numbers.
    """
    truth, predicted = _as_labels(labels, "labels"), _as_labels(predictions, "predictions")
    if truth.shape != predicted.shape:
        raise ValueError(f"labels have shape {truth.shape} but predictions {predicted.shape}: scores need equal shapes")
    keep = None if ignore is None else np.asarray(ignore) == 0
    if keep is not None and keep.shape != truth.shape:
        raise ValueError(f"labels have shape {truth.shape} but ignore has {keep.shape}: scores need equal shapes")
    pairs = _count_pairs(truth, predicted, keep)  # [3, pairs with background]
    return _build(pairs, pixels=truth.size if keep is None else int(np.count_nonzero(keep)))


def maximum_weight_matching(rows: IntArray, columns: IntArray, weights: FloatArray) -> IntArray:
    """Indices of the pairs in a one-to-one matching of maximum total weight; exact.

    Args:
        rows: [P] row of each pair; a (row, column) occurs at most once.
        columns: [P] column of each pair.
        weights: [P] positive weights.

    Returns:
        Indices into the P pairs, ascending: no two share a row or a column.
    """
    alive = np.arange(len(rows))
    chosen: list[IntArray] = []
    while len(alive):
        dominant = _dominant(rows[alive], columns[alive], weights[alive])
        if not dominant.any():
            break
        chosen.append(alive[dominant])
        free_row, free_column = np.ones(rows.max() + 1, np.bool_), np.ones(columns.max() + 1, np.bool_)
        free_row[rows[chosen[-1]]] = free_column[columns[chosen[-1]]] = False
        alive = alive[free_row[rows[alive]] & free_column[columns[alive]]]
    if len(alive):
        chosen.append(alive[_assign(rows[alive], columns[alive], weights[alive])])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def match_by_iou(overlaps: Overlaps, threshold: float) -> IntArray:
    """Indices of the pairs matched one to one with IoU >= `threshold`: as many as possible, then of the highest IoU.

    Above 0.5 a pair that reaches the threshold excludes all others, so no assignment is needed.

    Raises:
        ValueError: `threshold` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: {threshold} is not an IoU in (0, 1]")
    ious = overlaps.ious
    candidates = np.flatnonzero(ious >= threshold)
    if threshold > 0.5 or not len(candidates):
        return candidates
    weights = 1 + ious[candidates] / (1 + min(len(overlaps.truth_ids), len(overlaps.prediction_ids)))
    matched = maximum_weight_matching(overlaps.rows[candidates], overlaps.columns[candidates], weights)
    return candidates[matched]


def _as_labels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """`array` as non-negative integers, without a copy where it already is."""
    labels = np.atleast_1d(np.asarray(array))
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if labels.dtype.kind == "f":
        if not np.array_equal(labels, np.round(labels)) or np.isinf(labels).any():
            raise ValueError(f"{name}: values are not whole numbers ({labels.dtype}): pass an integer label image")
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype {labels.dtype} is not an integer label image")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise ValueError(f"{name}: negative label {labels.min()}: labels are 0 (background) and up")
    if labels.dtype.itemsize == 8 and labels.size and labels.max() >= 2**63:
        raise ValueError(f"{name}: label {labels.max()} is beyond 2**63 − 1")
    return labels


def _count_pairs(truth: NDArray[Any], predicted: NDArray[Any], keep: NDArray[np.bool_] | None) -> IntArray:
    """[3, n]: truth label, predicted label and pixel count of every pair of values that occurs, background included."""
    rows_per_strip = max(1, _STRIP_PIXELS * len(truth) // max(1, truth.size))
    tables = []
    for start in range(0, len(truth), rows_per_strip):
        strip = slice(start, start + rows_per_strip)
        tables.append(_merge(_runs(truth[strip], predicted[strip], None if keep is None else keep[strip])))
    if len(tables) == 1:
        return tables[0]
    return _merge(np.concatenate(tables, axis=1)) if tables else np.zeros((3, 0), np.int64)


def _runs(truth: NDArray[Any], predicted: NDArray[Any], keep: NDArray[np.bool_] | None) -> IntArray:
    """[3, runs]: the two labels and the length of each run of pixels over which neither image changes."""
    if keep is not None:
        truth, predicted = truth[keep], predicted[keep]
    truth, predicted = truth.ravel(), predicted.ravel()
    if not truth.size:
        return np.zeros((3, 0), np.int64)
    changes = truth[1:] != truth[:-1]
    changes |= predicted[1:] != predicted[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=truth.size)
    return np.stack([truth[starts].astype(np.int64), predicted[starts].astype(np.int64), lengths])  # [3, runs]


def _merge(table: IntArray) -> IntArray:
    """Sum the counts of equal (truth, prediction) pairs; pairs come out in ascending order."""
    truth, predicted, counts = table
    if not len(counts):
        return table
    columns = int(predicted.max()) + 1
    if (int(truth.max()) + 1) * columns <= _CELLS_A_RUN * len(counts):  # few cells: counting beats sorting
        total = np.bincount(truth * columns + predicted, weights=counts)  # exact in float below 2**53 pixels
        found = np.flatnonzero(total)
        return np.stack([found // columns, found % columns, total[found].astype(np.int64)])  # [3, pairs]
    if int(truth.max()) < 2**31 and int(predicted.max()) < 2**31:  # one number a pair
        keys, totals = _sum_by_key((truth << 32) | predicted, counts)
        return np.stack([keys >> 32, keys & 0xFFFFFFFF, totals])  # [3, pairs]
    order = np.lexsort((predicted, truth))
    truth, predicted, counts = truth[order], predicted[order], counts[order]
    first = np.concatenate([[True], (truth[1:] != truth[:-1]) | (predicted[1:] != predicted[:-1])])
    starts = np.flatnonzero(first)
    return np.stack([truth[starts], predicted[starts], np.add.reduceat(counts, starts)])  # [3, pairs]


def _sum_by_key(keys: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """The distinct keys, ascending, and the sum of the positive `counts` of each.

    A pair of labels comes in many runs. Each key is hashed to a slot that remembers one of the keys that fall into it;
    those are summed without sorting. The few others are sorted.
    """
    bits = len(keys).bit_length()
    slots = ((keys.astype(np.uint64) * _HASH) >> np.uint64(64 - bits)).astype(np.int64)  # [runs]
    table = np.empty(1 << bits, np.int64)
    table[slots] = np.arange(len(keys))
    keeper = table[slots]  # [runs] the run that the run's slot remembers
    same = keys[keeper] == keys
    totals = np.bincount(keeper[same], counts[same], len(keys))  # exact in float below 2**53 pixels
    first = np.flatnonzero(totals)
    others = np.flatnonzero(~same)
    others = others[np.argsort(keys[others], kind="stable")]
    starts = np.flatnonzero(np.diff(keys[others], prepend=-1))
    found = np.concatenate([keys[first], keys[others[starts]]])
    rest = np.add.reduceat(counts[others], starts) if len(starts) else np.zeros(0, np.int64)
    sums = np.concatenate([totals[first].astype(np.int64), rest])
    order = np.argsort(found)
    return found[order], sums[order]


def _build(pairs: IntArray, pixels: int) -> Overlaps:
    truth, predicted, counts = pairs
    changes = np.diff(truth, prepend=-1) != 0  # ascending
    truth_ids, truth_index = truth[changes], np.cumsum(changes) - 1
    prediction_ids, prediction_index = np.unique(predicted, return_inverse=True)
    truth_areas = _sum_by(truth_index, counts, len(truth_ids))
    prediction_areas = _sum_by(prediction_index, counts, len(prediction_ids))
    truth_skip, prediction_skip = int(0 in truth_ids[:1]), int(0 in prediction_ids[:1])
    inside = (truth > 0) & (predicted > 0)
    return Overlaps(
        truth_ids=truth_ids[truth_skip:],
        truth_areas=truth_areas[truth_skip:],
        prediction_ids=prediction_ids[prediction_skip:],
        prediction_areas=prediction_areas[prediction_skip:],
        rows=truth_index[inside] - truth_skip,
        columns=prediction_index[inside] - prediction_skip,
        intersections=counts[inside],
        pixels=pixels,
    )


def _sum_by(index: IntArray, values: IntArray, size: int) -> IntArray:
    """Sum integer `values` by `index`, exactly (a weighted bincount would go through float)."""
    total = np.zeros(size, np.int64)
    np.add.at(total, index, values)
    return total


def _dominant(rows: IntArray, columns: IntArray, weights: FloatArray) -> NDArray[np.bool_]:
    """[P] pairs that are certainly part of some maximum matching: no lighter than the best rivals of row and column.

    Swapping such a pair in removes at most one rival from its row and one from its column, which weigh no more.
    """
    row_best, row_second = _two_best(rows, weights)
    column_best, column_second = _two_best(columns, weights)
    is_best = (row_best[rows] == np.arange(len(rows))) & (column_best[columns] == np.arange(len(rows)))
    return is_best & (weights >= row_second[rows] + column_second[columns])


def _two_best(groups: IntArray, weights: FloatArray) -> tuple[IntArray, FloatArray]:
    """For each group: the index of its heaviest pair, and the weight of the next one (0 where there is none)."""
    order = np.lexsort((weights, groups))  # [P], the heaviest of a group last
    last = np.flatnonzero(np.append(groups[order][1:] != groups[order][:-1], True))
    size = int(groups.max()) + 1
    best, second = np.full(size, -1, np.int64), np.zeros(size)
    best[groups[order[last]]] = order[last]
    has_second = (last > 0) & (groups[order[last - 1]] == groups[order[last]])
    second[groups[order[last[has_second]]]] = weights[order[last[has_second] - 1]]
    return best, second


def _compact(index: IntArray) -> tuple[IntArray, int]:
    """Indices renumbered 0…n − 1 in their order, and n."""
    seen = np.zeros(int(index.max()) + 1, np.bool_)
    seen[index] = True
    number = np.cumsum(seen)
    return number[index] - 1, int(number[-1])


def _assign(rows: IntArray, columns: IntArray, weights: FloatArray) -> IntArray:
    """Indices of a maximum-weight matching by shortest augmenting paths (Jonker–Volgenant).

    SciPy's sparse solver requires every row to be matched: each row gets its own column, which stands for "unmatched".
    """
    row, n_rows = _compact(rows)
    column, n_columns = _compact(columns)
    if n_rows * n_columns <= _SMALL_TABLE:
        table = np.zeros((n_rows, n_columns))
        table[row, column] = weights
        partner = np.full(n_rows, -1, np.int64)
        solved = linear_sum_assignment(table, maximize=True)
        partner[solved[0]] = solved[1]
        return np.flatnonzero(partner[row] == column)
    ceiling = float(weights.max()) + 1  # costs must be explicit and nonzero; every row pays it once
    cost = np.concatenate([ceiling - weights, np.full(n_rows, ceiling)])
    all_rows = np.concatenate([row, np.arange(n_rows)])
    all_columns = np.concatenate([column, n_columns + np.arange(n_rows)])
    graph = csr_array((cost, (all_rows, all_columns)), shape=(n_rows, n_columns + n_rows))
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    match = np.full(n_rows, -1, np.int64)
    match[matched_rows] = matched_columns
    return np.flatnonzero(match[row] == column)
