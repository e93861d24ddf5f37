"""Flow targets: Cellpose's values, unit length where float32 fails, every kind of label image, equivariance."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinocell.core.jit import compiled
from dinocell.labels.cells import find_cells
from dinocell.objectives.flows.objective import flows_to_masks
from dinocell.objectives.flows.targets import masks_to_flows

GOLDEN = Path(__file__).parents[2] / "golden" / "objectives_cellpose.npz"
VARIANTS = ["cellpose", "leak_free"]


def lengths(flows: np.ndarray) -> np.ndarray:
    return np.hypot(flows[0], flows[1])


def test_equals_cellpose_on_a_difficult_image():
    golden = np.load(GOLDEN)
    flows = masks_to_flows(golden["labels"])
    # A point of symmetry has no direction; Cellpose normalises rounding errors there.
    directed = lengths(flows) > 0
    inside = golden["labels"] > 0
    assert np.bincount(golden["labels"][inside & ~directed]).max() <= 1
    np.testing.assert_allclose(flows[:, directed], golden["flows"][:, directed], atol=1e-6)
    assert not flows[:, ~inside].any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(10, 460), (460, 10), (400, 400)])
def test_unit_length_in_long_and_large_cells(variant: str, shape: tuple[int, int]):
    labels = np.zeros((shape[0] + 20, shape[1] + 20), np.int32)
    labels[10:-10, 10:-10] = 1
    length = lengths(masks_to_flows(labels, variant))[labels == 1]
    flat = length == 0
    assert flat.sum() <= 1
    np.testing.assert_allclose(length[~flat], 1, atol=1e-6)


def test_flow_points_to_the_centre_of_a_disk(disks):
    labels = disks(61, [(30, 30, 20)])
    y, x = np.mgrid[:61, :61]
    inward = np.stack([30 - y, 30 - x]).astype(float)
    away = (labels == 1) & (np.hypot(*inward) > 2)
    cosine = (masks_to_flows(labels) * inward).sum(axis=0)[away] / np.hypot(*inward)[away]
    assert cosine.min() > 0.97


@pytest.mark.parametrize("variant", VARIANTS)
def test_dtype_numbering_and_memory_layout_do_not_matter(variant: str, voronoi):
    labels = voronoi(3)
    expected = masks_to_flows(labels, variant)
    numbers = np.array([0, 2**40, 5, 70_000, 2**33, 9, 8, 1, 2**50, 3], np.uint64)
    huge = numbers[labels]
    for other in (huge, huge.astype(np.int64), labels.astype(np.uint8), labels.astype(">u2"), labels.astype(float)):
        np.testing.assert_array_equal(masks_to_flows(other, variant), expected)
    np.testing.assert_array_equal(masks_to_flows(np.asfortranarray(labels), variant), expected)
    wide = np.repeat(labels, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(masks_to_flows(wide, variant), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_edge_cases(variant: str):
    for shape in ((0, 0), (0, 7), (1, 1), (5, 9)):
        assert masks_to_flows(np.zeros(shape, np.uint8), variant).shape == (2, *shape)
    alone = np.zeros((5, 5), bool)
    alone[0, 4] = True
    assert not masks_to_flows(alone, variant).any()
    assert np.isfinite(masks_to_flows(np.ones((6, 8), np.int64), variant)).all()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.array([[-1, 0]]), "negative"),
        (np.array([[0.5, 0]]), "fractions"),
        (np.array([[np.nan, 0]]), "NaN"),
        (np.zeros((2, 2, 2), int), "shape"),
        (np.array([["a"]]), "dtype"),
    ],
)
def test_wrong_labels_are_named(labels: np.ndarray, reason: str):
    with pytest.raises(ValueError, match=reason):
        masks_to_flows(labels)


def test_more_than_65535_cells():
    labels = np.zeros((600, 1000), np.int32)
    labels[::2, 0::4] = labels[::2, 1::4] = labels[::2, 2::4] = np.arange(1, 75_001).reshape(300, 250)
    cells = find_cells(labels)
    assert len(cells.numbers) == 75_000
    assert (cells.areas == 3).all()
    flows = masks_to_flows(labels)
    # Three pixels in a row: both ends point at the middle, the middle nowhere.
    np.testing.assert_array_equal(flows[1, ::2, :4][:, :3], np.tile([1, 0, -1], (300, 1)))
    assert not flows[0].any()


def test_leak_free_flows_do_not_depend_on_neighbours(voronoi):
    labels = voronoi(5)
    flows = masks_to_flows(labels, "leak_free")
    for number in np.unique(labels[labels > 0]):
        alone = np.where(labels == number, labels, 0)
        np.testing.assert_array_equal(
            flows[:, labels == number], masks_to_flows(alone, "leak_free")[:, labels == number]
        )


def test_leak_free_gives_each_fragment_a_centre():
    labels = np.zeros((20, 40), np.int32)
    labels[4:15, 3:14] = labels[4:15, 24:35] = 7
    flows = masks_to_flows(labels, "leak_free")
    np.testing.assert_allclose(flows[:, :, 3:14], flows[:, :, 24:35], atol=1e-6)
    assert (lengths(flows)[labels > 0] > 0.99).sum() == (labels > 0).sum() - 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), turns=st.integers(0, 3), flip=st.booleans(), gap=st.sampled_from([0.0, 2.0]))
def test_leak_free_flows_turn_and_flip_with_the_image(seed: int, turns: int, flip: bool, gap: float):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (6, 8)), np.ones((3, 4), int))
    labels[rng.random(labels.shape) < gap / 20] = 0
    flows = masks_to_flows(labels, "leak_free")
    moved = np.rot90(labels[:, ::-1] if flip else labels, turns)
    dy, dx = (np.rot90(part[:, ::-1] if flip else part, turns) for part in flows)
    dx = -dx if flip else dx
    for _ in range(turns):
        dy, dx = -dx, dy
    np.testing.assert_allclose(masks_to_flows(moved, "leak_free"), np.stack([dy, dx]), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), variant=st.sampled_from(VARIANTS), threads=st.sampled_from([1, 3]))
def test_any_label_image_gives_unit_or_zero_vectors(seed: int, variant: str, threads: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, (17, 23)) * rng.integers(0, 2, (17, 23))
    flows = masks_to_flows(labels, variant, threads)
    length = lengths(flows)
    assert ((length < 1e-6) | (abs(length - 1) < 1e-6)).all()
    assert not flows[:, labels == 0].any()
    np.testing.assert_array_equal(flows, masks_to_flows(labels, variant))


def test_kernels_work_without_any_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert compiled(fast=True)(lambda value: value + 1)(1) == 2


@pytest.mark.skipif("DINOCELL_REAL_DATA" not in os.environ, reason="DINOCELL_REAL_DATA is not set")
def test_real_touching_cells_survive_the_round_trip(matches):
    import cv2

    folder = Path(os.environ["DINOCELL_REAL_DATA"]) / "labelled" / "yeast_phase_ncsu" / "test" / "masks"
    for path in sorted(folder.glob("*.png")):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        flows = masks_to_flows(labels, "leak_free")
        assert matches(labels, flows_to_masks(flows, labels > 0, variant="leak_free")) > 0.95, path.name
