"""The best crop is the best of all positions, exactly, and memory does not grow with the picture."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from dinocell.curation import best_crop, best_crops

RNG = np.random.default_rng(2)


def brute_force(image: np.ndarray, size: int) -> np.ndarray:
    """Variance of cv2's Laplacian in every window."""
    laplacian = cv2.Laplacian(image.astype(np.float64), cv2.CV_64F, ksize=1)
    window = min(size, image.shape[0]), min(size, image.shape[1])
    return np.lib.stride_tricks.sliding_window_view(laplacian, window).var(axis=(2, 3))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 50), (17, 17), (10, 50), (50, 10), (1, 30), (30, 1), (2, 2), (1, 1)])
def test_equals_every_window_by_opencv(dtype: str, shape: tuple[int, int]) -> None:
    image = (RNG.random(shape) * 250).astype(dtype)
    variances = brute_force(image, 17)
    y, x, value = best_crop(image, 17)
    assert value == pytest.approx(variances.max(), rel=1e-12)
    assert variances[y, x] == pytest.approx(variances.max(), rel=1e-12)


def test_full_range_16_bit_is_exact() -> None:
    image = RNG.integers(0, 2, (90, 90)).astype(np.uint16) * 65535
    variances = brute_force(image, 64)
    y, x, value = best_crop(image, 64)
    assert (y, x) == np.unravel_index(variances.argmax(), variances.shape)
    assert value == pytest.approx(variances.max(), rel=1e-12)


def test_a_hot_pixel_leaves_no_trace_behind() -> None:
    """A running sum in plain float64 keeps a residue of 1e12² for the rest of the picture."""
    image = RNG.random((80, 60))
    image[2, 5] = 1e12
    rest = brute_force(image, 16)[10:]  # windows that do not see it
    found = [window for window in best_crops(image, 16, 12, 0.0) if window[0] >= 10]
    assert found
    for y, x, value in found:
        assert value == pytest.approx(rest[y - 10, x], rel=1e-9)


def test_finds_the_textured_corner() -> None:
    image = np.zeros((300, 400), np.uint8)
    image[180:280, 250:350] = RNG.integers(0, 255, (100, 100))
    y, x, _ = best_crop(image, 110)
    assert y <= 180 and x <= 250 and y + 110 >= 280 and x + 110 >= 350


def test_nan_counts_as_zero() -> None:
    image = RNG.random((40, 40))
    image[5, 5] = np.nan
    expected = image.copy()
    expected[5, 5] = 0
    assert best_crop(image, 16) == best_crop(expected, 16)


def test_the_first_of_equals_wins() -> None:
    assert best_crop(np.zeros((30, 30), np.uint8), 10) == (0, 0, 0.0)


def test_further_crops_overlap_within_the_limit_and_come_in_order() -> None:
    image = RNG.integers(0, 255, (200, 200)).astype(np.uint8)
    windows = best_crops(image, 50, 6, 0.25)
    values = [value for _, _, value in windows]
    assert len(windows) == 6 and values == sorted(values, reverse=True)
    for number, (y, x, _) in enumerate(windows):
        for other_y, other_x, _ in windows[:number]:
            shared = max(50 - abs(y - other_y), 0) * max(50 - abs(x - other_x), 0)
            assert shared <= 0.25 * 2500


def test_asks_for_more_crops_than_fit() -> None:
    assert len(best_crops(RNG.integers(0, 255, (60, 60)).astype(np.uint8), 50, 9, 0.0)) == 1


def test_memory_is_rows_not_planes() -> None:
    image = RNG.integers(0, 255, (2000, 1000)).astype(np.uint8)
    best_crop(image[:100], 64)
    tracemalloc.start()
    best_crop(image, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 10
