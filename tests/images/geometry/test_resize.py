"""Resizing keeps the aspect, labels keep their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dinocell.images.geometry.resize import resize_image, resize_labels


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
    size = (128, 192)
    wide, big = resize_image(image, size), resize_labels(labels, size)
    rows, columns = np.nonzero(big)
    total = wide.clip(0).sum()
    centre = (np.arange(size[0]) @ wide.clip(0).sum(1) / total, np.arange(size[1]) @ wide.clip(0).sum(0) / total)
    np.testing.assert_allclose(centre, (rows.mean(), columns.mean()), atol=0.5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_of_the_wanted_size_are_left_alone(dtype: str) -> None:
    image = np.ones((64, 80), dtype)
    assert resize_image(image, (64, 80)) is image
