"""Resizing keeps the aspect, labels keep their numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinocell.images.geometry.resize import cover_size, resize_image, resize_labels, scale_to_cover

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.integers(1, 200))
def test_cover_size_has_the_short_side_and_the_aspect(height: int, width: int, crop: int) -> None:
    new = cover_size((height, width), crop)
    assert min(new) >= crop
    if min(height, width) >= crop:
        assert new == (height, width)
    else:
        assert min(new) == crop
        assert abs(max(new) - max(height, width) * crop / min(height, width)) <= 0.5


def test_labels_come_back_after_whole_number_scaling() -> None:
    labels = np.random.default_rng(0).integers(0, 100_000, (13, 17)).astype(np.int32)
    large = resize_labels(labels, (39, 51))
    assert large.dtype == np.int32
    np.testing.assert_array_equal(large, labels.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(resize_labels(large, (13, 17)), labels)


def test_scaled_images_and_labels_stay_registered() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[10:30, 20:40] = 5
    image = labels.astype(np.float32)
    size = cover_size((40, 60), 128)
    wide, big = resize_image(image, size), resize_labels(labels, size)
    rows, columns = np.nonzero(big)
    total = wide.clip(0).sum()
    centre = (np.arange(size[0]) @ wide.clip(0).sum(1) / total, np.arange(size[1]) @ wide.clip(0).sum(0) / total)
    np.testing.assert_allclose(centre, (rows.mean(), columns.mean()), atol=0.5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_large_images_are_left_alone(dtype: str) -> None:
    image = np.ones((64, 80), dtype)
    assert scale_to_cover(image, 64) is image
