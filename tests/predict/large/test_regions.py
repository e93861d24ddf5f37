"""Regions resampled alone are those of the resampled whole, as OpenCV resamples it."""

import cv2
import numpy as np
import pytest

from dinocell.images.geometry.resize import resize_maps
from dinocell.predict.large.regions import ScaledMaps, ScaledSource, WholeSource

SIZES = [(100, 80), (50, 40), (33, 77), (31, 25), (210, 170), (333, 301), (99, 80), (101, 81)]


@pytest.mark.parametrize("size", SIZES)
def test_regions_of_a_scaled_picture_are_those_of_opencv(size: tuple[int, int]) -> None:
    z = np.random.default_rng(0).normal(size=(100, 80)).astype(np.float32)
    shrinking = size[0] * size[1] < z.size
    whole = cv2.resize(z, size[::-1], interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    picture = ScaledSource(WholeSource(z), size)
    for rows, columns in (
        (slice(0, size[0]), slice(0, size[1])),
        (slice(7, 20), slice(11, 24)),
        (slice(size[0] - 1, size[0]), slice(0, 1)),
    ):
        np.testing.assert_allclose(picture.region(rows, columns), whole[rows, columns], atol=2e-4)


@pytest.mark.parametrize("size", [(100, 80), (37, 29), (250, 199)])
def test_scaled_maps_are_the_resized_maps(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(3, 100, 80)).astype(np.float32)
    whole, seen = resize_maps(maps, size), ScaledMaps(maps, size)
    assert seen.shape == whole.shape and len(seen) == 3 and seen.ndim == 3
    np.testing.assert_allclose(np.asarray(seen), whole, atol=2e-4)
    np.testing.assert_allclose(seen[:2], whole[:2], atol=2e-4)
    np.testing.assert_allclose(seen[2], whole[2], atol=2e-4)
    np.testing.assert_allclose(seen[:, 5:9], whole[:, 5:9], atol=2e-4)
    np.testing.assert_allclose(seen[:, 5:9, 3:4], whole[:, 5:9, 3:4], atol=2e-4)
