"""Decoding flows: whole cells back, Cellpose's masks from Cellpose's flows, and an account of what is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dinocell.labels.regions import fill_holes, split_fragments
from dinocell.objectives import Frame, ObjectiveConfig
from dinocell.objectives.flows import walk
from dinocell.objectives.flows.objective import decode_flows, flows_to_masks
from dinocell.objectives.flows.targets import masks_to_flows

GOLDEN = Path(__file__).parents[2] / "golden" / "objectives_cellpose.npz"
NOISY = GOLDEN.with_name("objectives_cellpose_noisy.npz")
VARIANTS = ["cellpose", "leak_free"]


def round_trip(labels: np.ndarray, variant: str, **options: float) -> np.ndarray:
    return flows_to_masks(masks_to_flows(labels, variant), labels > 0, variant=variant, **options)


def test_same_masks_as_cellpose_from_the_same_flows(matches):
    golden = np.load(GOLDEN)
    ours = flows_to_masks(golden["flows"], golden["labels"] > 0)
    assert matches(golden["masks"], ours) == 1


@pytest.mark.parametrize(("name", "flow_error"), [("checked", 0.4), ("unchecked", 0.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_masks_as_cellpose_from_noisy_flows(name: str, flow_error: float, seed: int, matches):
    golden = np.load(NOISY)
    flows, probability = golden[f"flows_{seed}"] / np.float32(64), golden[f"probability_{seed}"] / np.float32(255)
    assert golden[f"{name}_{seed}"].max() >= 8
    assert matches(golden[f"{name}_{seed}"], flows_to_masks(flows, probability, flow_error=flow_error)) > 0.97


@pytest.mark.parametrize("variant", VARIANTS)
def test_convex_cells_come_back(variant: str, disks, matches):
    labels = disks(
        128, [(20, 20, 12), (20, 60, 5), (60, 30, 18), (60, 90, 25), (110, 20, 9), (0, 110, 12), (127, 90, 7)]
    )
    assert matches(labels, round_trip(labels, variant)) == 1


def filaments() -> np.ndarray:
    labels = np.zeros((560, 560), np.int32)
    labels[20:30, 40:500] = 1
    labels[60:520, 10:20] = 2
    y, x = np.mgrid[:560, :560]
    labels[(abs(y - x) <= 7) & (x + y > 300) & (x + y < 960)] = 3
    radius, angle = np.hypot(y - 540, x - 60), np.arctan2(540 - y, x - 60)
    labels[(abs(radius - 300) <= 5) & (angle > 0.1) & (angle < 0.62)] = 4
    return labels


@pytest.mark.parametrize("variant", VARIANTS)
def test_filaments_come_back_whole(variant: str, matches):
    labels = filaments()
    assert matches(labels, round_trip(labels, variant)) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_400_pixel_cell_comes_back_whole(variant: str, disks, matches):
    labels = disks(640, [(320, 320, 200)])
    assert matches(labels, round_trip(labels, variant)) == 1


def test_steps_are_not_limited_to_cellpose_s_200(matches):
    labels = np.zeros((30, 1400), np.int32)
    labels[10:18, 10:1390] = 1
    assert matches(labels, round_trip(labels, "cellpose")) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_touching_rectangles_come_back_leak_free(seed: int):
    rng = np.random.default_rng(seed)
    rows, columns = (np.repeat(np.arange(4), rng.integers(8, 20, 4)) for _ in range(2))
    labels = (rows[:, None] * 4 + columns + 1).astype(np.uint8)
    result = round_trip(labels, "leak_free")
    for number in range(1, 17):
        mask = labels == number
        found = result == np.bincount(result[mask]).argmax()
        assert (mask & found).sum() / (mask | found).sum() > 0.9


def test_report_accounts_for_everything_dropped(disks):
    labels = disks(100, [(50, 50, 38), (8, 8, 2), (90, 8, 6)])
    flows = masks_to_flows(labels)
    flows[:, 80:, :20] = flows[:, 80:, :20][::-1]
    probability = (labels > 0).astype(np.float32)
    probability[3, 96:99] = 1
    result, report = decode_flows(flows, probability)
    assert report.cells == len(np.unique(result)) - 1
    assert [box[-1] for box in report.too_large] == [(labels == 1).sum()]
    assert report.too_small == 1
    assert report.unassigned >= 3
    kept, whole = decode_flows(flows, probability, ObjectiveConfig(max_size_fraction=1.0, min_size=0, flow_error=0))
    assert whole.too_large == whole.inconsistent == ()
    assert (kept[labels == 1] > 0).all()


def test_what_is_dropped_from_a_part_is_named_by_its_place_in_the_image(disks):
    labels = disks(60, [(30, 30, 20)])
    frame = Frame(y=1000, x=2000, height=1060, width=2060)
    flows, config = masks_to_flows(labels)[:, ::-1].copy(), ObjectiveConfig(flow_error=0.1)
    _, report = decode_flows(flows, labels > 0, config, frame=frame)
    assert report.inconsistent and not report.too_large
    assert all(y0 >= 1000 and y1 <= 1060 and x0 >= 2000 and x1 <= 2060 for y0, x0, y1, x1, _ in report.inconsistent)


def test_flow_error_drops_a_cell_whose_flow_is_not_its_own(disks):
    labels = disks(64, [(20, 20, 10), (44, 44, 10)])
    flows = masks_to_flows(labels)
    y, x = np.mgrid[:64, :64]
    swirl = np.stack([x - 44.0, 44.0 - y])
    swirl /= np.maximum(np.hypot(*swirl), 1)
    turned = np.where(labels == 2, 0.6 * flows + 0.9 * swirl, flows)
    _, report = decode_flows(turned, labels > 0)
    assert report.cells == 1
    assert len(report.inconsistent) == 1
    assert decode_flows(turned, labels > 0, ObjectiveConfig(flow_error=0))[1].cells == 2


def test_large_masks_are_dropped_with_a_warning(disks, capsys):
    labels = disks(60, [(30, 30, 25)])
    assert not flows_to_masks(masks_to_flows(labels), labels > 0).any()
    assert "max_size_fraction" in capsys.readouterr().err + capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_unusable_flows_do_not_crash(value: float):
    flows = np.full((2, 16, 16), value, np.float32)
    labels = flows_to_masks(flows, np.ones((16, 16)))
    assert labels.shape == (16, 16)
    assert not flows_to_masks(np.zeros((2, 16, 16)), np.full((16, 16), value))[:0].any()


def test_empty_and_tiny_images():
    for shape in ((0, 0), (0, 5), (1, 1), (3, 200)):
        labels = flows_to_masks(np.zeros((2, *shape)), np.ones(shape))
        assert labels.shape == shape
        assert labels.dtype == np.int32
    with pytest.raises(ValueError, match="flows must be"):
        flows_to_masks(np.zeros((2, 4, 4)), np.zeros((4, 5)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), threads=st.sampled_from([1, 2, 5]))
def test_any_maps_give_consecutive_labels_inside_the_threshold(seed: int, threads: int):
    rng = np.random.default_rng(seed)
    flows = ndimage.gaussian_filter(rng.normal(0, 20, (2, 48, 57)), (0, 4, 4)).astype(np.float32)
    probability = rng.random((48, 57)).astype(np.float32) * 2
    labels = flows_to_masks(flows, probability, threads=threads)
    assert set(np.unique(labels)) | {0} == set(range(labels.max() + 1))
    np.testing.assert_array_equal(labels, flows_to_masks(flows, probability))


def test_closed_orbits_end():
    y, x = np.mgrid[:64, :64] - 31.5
    flows = np.stack([x, -y]) / np.maximum(np.hypot(y, x), 1)
    ends = walk.end_points(flows.astype(np.float32), np.ones((64, 64), np.float32), 0.5)
    assert ((ends >= 0) & (ends < 64 * 64)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_holes_are_those_of_scipy(seed: int):
    rng = np.random.default_rng(seed)
    labels = (rng.random((20, 24)) < 0.6).astype(np.int32) * 4
    expected = ndimage.binary_fill_holes(labels).astype(np.int32) * 4
    fill_holes(labels)
    np.testing.assert_array_equal(labels, expected)


def test_a_cell_inside_a_ring_stays_and_the_gap_too():
    labels = np.zeros((30, 30), np.int32)
    labels[2:28, 2:28] = 1
    labels[6:24, 6:24] = 0
    labels[12:18, 12:18] = 2
    labels[14, 14] = 0
    before = labels.copy()
    fill_holes(labels)
    before[14, 14] = 2
    np.testing.assert_array_equal(labels, before)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_fragments_are_scipy_s_components_of_each_label(seed: int):
    labels = np.random.default_rng(seed).integers(0, 4, (15, 18)).astype(np.int32)
    result = split_fragments(labels)
    expected = sum(ndimage.label(labels == k, np.ones((3, 3)))[1] for k in (1, 2, 3))
    assert len(np.unique(result[result > 0])) == expected
    pairs = np.unique(np.stack([result, labels]).reshape(2, -1), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]
