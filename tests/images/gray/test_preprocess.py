"""Preprocessing: the same picture gives the same network input, however it was stored."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dinocell.core.errors import ConfigError, DataError
from dinocell.images.gray.clahe import apply_clahe
from dinocell.images.gray.contrast import percentiles, scale_to_uint8, to_uint8
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane

RNG = np.random.default_rng(1)


def cells(height: int = 120, width: int = 150) -> np.ndarray:
    smooth = cv2.GaussianBlur(RNG.random((height, width)).astype(np.float32), (0, 0), 4)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return (smooth * 255).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(120, 152), (64, 64), (101, 37), (5, 7), (1, 30)])
def test_clahe_equals_opencv(shape: tuple[int, int]) -> None:
    gray = cells(*shape) if min(shape) > 5 else RNG.integers(0, 256, shape).astype(np.uint8)
    for clip in (1.0, 3.0):
        theirs = cv2.createCLAHE(clip, (8, 8)).apply(gray)
        ours = apply_clahe((gray / 255).astype(np.float32), clip, 8) * 255
        assert np.abs(ours - theirs).max() <= 1.0  # they round to 8 bit twice


@pytest.mark.parametrize(("use_clahe", "most"), [(False, 1e-5), (True, 0.012)])
def test_dtype_does_not_matter(use_clahe: bool, most: float) -> None:
    """But for rounding: a gray value between two of the 256 bins of CLAHE, 0.01 wide here, may fall into either."""
    gray, config = cells(), PreprocessConfig(clahe=use_clahe)
    expected = preprocess_plane(gray, config)
    for other in (gray.astype(np.uint16) * 257, gray.astype(np.float32) / 7 - 9, gray.astype(np.int32) * 100_000):
        np.testing.assert_allclose(preprocess_plane(other, config), expected, atol=most)


def test_16_bit_keeps_more_than_256_levels() -> None:
    ramp = np.tile(np.arange(4000, dtype=np.uint16), (64, 1))
    assert np.unique(preprocess_plane(ramp, PreprocessConfig(clahe=False))).size > 3900


@pytest.mark.parametrize("use_clahe", [True, False])
def test_zero_mean_unit_variance(use_clahe: bool) -> None:
    values = preprocess_plane(cells(), PreprocessConfig(clahe=use_clahe))
    assert values.dtype == np.float32
    assert abs(float(values.mean())) < 1e-5
    assert float(values.std()) == pytest.approx(1, abs=1e-5)


def test_nan_and_infinity_become_dark_or_bright_but_finite() -> None:
    image = cells().astype(np.float32)
    image[3, 3], image[4, 4], image[5, 5] = np.nan, np.inf, -np.inf
    values = preprocess_plane(image)
    assert np.isfinite(values).all()


def test_constant_images_are_zeros_with_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    for image in (np.full((20, 30), 7, np.uint16), np.full((20, 30), np.nan, np.float32)):
        assert not preprocess_plane(image).any()
    assert capfd.readouterr().err.count("constant image of 20×30 px") == 2


def test_only_planes_are_taken() -> None:
    with pytest.raises(DataError, match="gray image"):
        preprocess_plane(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ConfigError, match="percentile_low"):
        PreprocessConfig(percentile_low=60, percentile_high=50)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_percentiles_are_order_statistics(dtype: str) -> None:
    values = RNG.permutation(1001).reshape(77, 13)
    image = (values // 4 if dtype == "uint8" else values).astype(dtype)
    ordered = np.sort(image.ravel())
    assert percentiles(image, 10, 90) == (ordered[100], ordered[900])


def test_dim_images_use_the_full_8_bit_range() -> None:
    dim = (np.arange(120 * 150).reshape(120, 150) % 16).astype(np.uint16) + 1000  # each of 16 levels is common
    shown = to_uint8(dim)
    assert (shown.min(), shown.max()) == (0, 255)
    np.testing.assert_array_equal(shown, scale_to_uint8(dim.astype(np.float64), 1000, 1015))


def test_one_bright_pixel_does_not_make_sparse_images_constant() -> None:
    image = np.zeros((100, 100), np.uint16)
    image[50, 50] = 9
    assert to_uint8(image)[50, 50] == 255
