"""Otsu + watershed finds what a classical method must find, and is as good as it is said to be on real images."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.evaluation.baseline import otsu_watershed
from dinocell.metrics import maximum_matching_accuracy

REAL = os.environ.get("DINOCELL_REAL_DATA")


def _disks(centres, radius=12, size=128):
    labels = np.zeros((size, size), np.int32)
    yy, xx = np.mgrid[:size, :size]
    for label, (y, x) in enumerate(centres, start=1):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= radius**2] = label
    return labels


SEPARATE = _disks([(25, 25), (25, 90), (90, 30), (95, 95)])


@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_separate_disks_are_found_in_either_polarity_and_any_dtype(dtype, bright):
    image = np.where((SEPARATE > 0) == bright, 200, 50).astype(dtype)
    found = otsu_watershed(image)
    assert found.dtype == np.int32 and found.max() == 4
    assert maximum_matching_accuracy(SEPARATE, found) > 0.9


def test_touching_disks_are_cut_where_they_touch():
    labels = _disks([(64, 45), (64, 68)])
    found = otsu_watershed(np.where(labels > 0, 180, 20).astype(np.uint8))
    assert found.max() == 2
    assert maximum_matching_accuracy(labels, found) > 0.9


def test_cells_that_cover_most_of_the_area_are_still_the_foreground():
    labels = _disks([(y, x) for y in (24, 64, 104) for x in (24, 64, 104)], radius=18)
    image = np.where(labels > 0, 40, 160).astype(np.uint8)
    assert (labels > 0).mean() > 0.5
    assert otsu_watershed(image).max() == 9


def test_specks_are_dropped_and_labels_have_no_gap():
    image = np.where(SEPARATE > 0, 200, 50).astype(np.uint8)
    image[5:7, 60:62] = 200
    found = otsu_watershed(image)
    assert np.array_equal(np.unique(found), np.arange(5))


@pytest.mark.parametrize("value", [0, 7])
def test_constant_image_has_no_cells(value):
    assert otsu_watershed(np.full((40, 50), value, np.uint16)).max() == 0


def test_nan_does_not_spread():
    image = np.where(SEPARATE > 0, 200.0, 50.0).astype(np.float32)
    image[0, 0] = np.nan
    assert otsu_watershed(image).max() == 4


def test_three_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        otsu_watershed(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.skipif(not REAL, reason="DINOCELL_REAL_DATA is not set")
@pytest.mark.parametrize(
    ("dataset", "reference"), [("dsb2018_nuclei", 0.69), ("usiigaci_phase", 0.04), ("yeast_phase_ncsu", 0.06)]
)
def test_real_images_at_least_as_good_as_the_reference_otsu_watershed(dataset, reference):
    root = Path(str(REAL)) / "labelled" / dataset / "test"
    scores = []
    for path in sorted((root / "images").iterdir()):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        gray = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
        mask = cv2.imread(str(root / "masks" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        scores.append(maximum_matching_accuracy(mask, otsu_watershed(gray)))
    assert np.mean(scores) >= reference
