"""Agreement with py-ctcmetrics, Cellpose, StarDist and networkx, recorded by tests/golden/metrics_peers_generate.py.

Where a peer's value is wrong by its own definition, the test says so and shows its value.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinocell import metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics_peers.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["cases"]}
NUMBERED = [name for name in CASES if name[-1].isdigit()]


def images(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    def image(runs: list[int]) -> np.ndarray:
        values, lengths = np.array(runs).reshape(-1, 2).T
        return np.repeat(values, lengths).reshape(case["shape"])

    return image(case["truth"]), image(case["prediction"])


@pytest.mark.parametrize("name", NUMBERED)
def test_seg_and_det_equal_py_ctcmetrics(name: str) -> None:
    truth, predicted = images(CASES[name])
    assert metrics.seg(truth, predicted) == pytest.approx(CASES[name]["ctc"]["SEG"], abs=1e-12)
    assert metrics.det(truth, predicted) == pytest.approx(CASES[name]["ctc"]["DET"], abs=1e-12)


def test_pooled_seg_and_det_equal_py_ctcmetrics_on_a_sequence() -> None:
    pooled = metrics.pool(metrics.score_image(*images(CASES[name])) for name in NUMBERED)
    expected = GOLDEN["ctc_sequence_of_all_numbered"]
    assert (pooled.seg, pooled.det) == pytest.approx((expected["SEG"], expected["DET"]), abs=1e-12)


@pytest.mark.parametrize("name", [*NUMBERED, "prediction empty", "truth empty", "IoU of exactly one half"])
def test_average_precision_equals_cellpose_and_stardist(name: str) -> None:
    truth, predicted = images(CASES[name])
    ours = [metrics.average_precision(truth, predicted, threshold) for threshold in GOLDEN["thresholds"]]
    assert ours == pytest.approx([row["accuracy"] for row in CASES[name]["stardist"]], abs=1e-12)
    assert ours == pytest.approx(CASES[name]["cellpose_ap"], abs=1e-6)  # float32 there


@pytest.mark.parametrize("name", NUMBERED)
def test_panoptic_quality_and_matched_iou_equal_stardist(name: str) -> None:
    truth, predicted = images(CASES[name])
    theirs = CASES[name]["stardist"][GOLDEN["thresholds"].index(0.5)]
    assert metrics.panoptic_quality(truth, predicted) == pytest.approx(theirs["panoptic_quality"], abs=1e-6)
    assert metrics.mean_matched_iou(truth, predicted) == pytest.approx(theirs["mean_matched_score"], abs=1e-6)
    assert metrics.count_error(truth, predicted) == theirs["fp"] - theirs["fn"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["networkx_mma"] is not None])
def test_mma_equals_a_general_maximum_weight_matching(name: str) -> None:
    assert metrics.maximum_matching_accuracy(*images(CASES[name])) == pytest.approx(
        CASES[name]["networkx_mma"], abs=1e-12
    )


def test_every_label_counts_without_background() -> None:
    """A perfect 4 × 4 mosaic: py-ctcmetrics drops a label and calls it invalid; Cellpose's AP exceeds 1 (16/14)."""
    case = CASES["no background"]
    truth, predicted = images(case)
    assert set(metrics.score_image(truth, predicted).metrics().values()) == {1.0}
    assert case["ctc"] == {"SEG": None, "DET": None}
    assert case["cellpose_ap"][0] == pytest.approx(16 / 14)


def test_nothing_found_where_nothing_is_scores_one() -> None:
    """Cellpose gives NaN, StarDist 0 and py-ctcmetrics stops with an error."""
    case = CASES["both empty"]
    assert set(metrics.score_image(*images(case)).metrics().values()) == {1.0}
    assert np.isnan(case["cellpose_ap"]).all()
    assert case["stardist"][0]["accuracy"] == 0
    assert case["ctc"].startswith("ValueError")


def test_large_ids_score_as_small_ones() -> None:
    """One cell found perfectly, id 40,001: py-ctcmetrics adds the ids in uint16, which wraps: SEG = DET = 0."""
    case = CASES["uint16 ids past 32,767 (one cell, perfect)"]
    assert set(metrics.score_image(*images(case)).metrics().values()) == {1.0}
    assert case["ctc"]["SEG"] == case["ctc"]["DET"] == 0
