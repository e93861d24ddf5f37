"""Crops: reproducible, with the probabilities and ranges the config names, and as Pillow makes them."""

import dataclasses

import numpy as np
import pytest

from dinocell.pretrain.config import AugmentConfig
from dinocell.pretrain.data.augment import (
    adjust_brightness,
    adjust_contrast,
    crop_window,
    multi_crop,
    resize,
    sample_rng,
    solarize,
)

PLAIN = AugmentConfig(
    global_size=64,
    local_size=32,
    local_crops=2,
    global_scale=(1.0, 1.0),
    local_scale=(1.0, 1.0),
    aspect=(1.0, 1.0),
    horizontal_flip=0.0,
    jitter_probability=0.0,
    blur_probability=0.0,
    solarize_probability=0.0,
)


def texture(shape: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """A smooth random image over the whole 8-bit range, like microscopy rather than like noise."""
    import cv2

    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def test_crops_depend_on_seed_and_sample_number_only() -> None:
    image, config = texture(), AugmentConfig(global_size=32, local_size=16)
    first, again = (multi_crop(image, config, sample_rng(3, 7)) for _ in range(2))
    np.testing.assert_array_equal(first.global_crops, again.global_crops)
    np.testing.assert_array_equal(first.local_crops, again.local_crops)
    for seed, sample in ((4, 7), (3, 8)):
        assert not np.array_equal(multi_crop(image, config, sample_rng(seed, sample)).global_crops, first.global_crops)


def test_shapes_and_no_local_crops() -> None:
    crops = multi_crop(texture((90, 40)), dataclasses.replace(PLAIN, local_crops=0), sample_rng(0, 0))
    assert crops.global_crops.shape == (2, 64, 64) and crops.local_crops.shape == (0, 32, 32)


def test_everything_off_is_the_identity() -> None:
    image = texture()
    crops = multi_crop(image, PLAIN, sample_rng(0, 0))
    np.testing.assert_array_equal(crops.global_crops, np.stack([image, image]))


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.25, 1.0])
def test_blur_probability_means_what_it_says(probability: float) -> None:
    """Upstream's class blurs with 1 - p: the trap of spec and issue."""
    image = texture()
    config = dataclasses.replace(PLAIN, blur_probability=probability, blur_sigma=(1.0, 2.0), local_crops=0)
    blurred = [
        not np.array_equal(crop, image)
        for sample in range(300)
        for crop in multi_crop(image, config, sample_rng(0, sample)).global_crops
    ]
    spread = 4 * np.sqrt(probability * (1 - probability) / len(blurred))
    assert abs(np.mean(blurred) - probability) <= spread


def test_only_the_second_global_crop_is_solarised() -> None:
    image = texture()
    crops = multi_crop(image, dataclasses.replace(PLAIN, solarize_probability=1.0), sample_rng(0, 0))
    np.testing.assert_array_equal(crops.global_crops[0], image)
    np.testing.assert_array_equal(crops.global_crops[1], np.where(image >= 128, 255 - image, image))
    assert solarize(np.array([[127, 128, 255]], np.uint8)).tolist() == [[127, 127, 0]]


def test_flips_and_turns_reach_all_eight_orientations_of_a_square() -> None:
    image = texture()
    config = dataclasses.replace(PLAIN, horizontal_flip=0.5, rotate90=True, local_crops=0)
    seen = {multi_crop(image, config, sample_rng(0, n)).global_crops[0].tobytes() for n in range(80)}
    expected = {np.rot90(view, k).tobytes() for view in (image, image[:, ::-1]) for k in range(4)}
    assert seen == expected
    vertical = dataclasses.replace(PLAIN, vertical_flip=1.0)
    np.testing.assert_array_equal(multi_crop(image, vertical, sample_rng(0, 0)).global_crops[0], image[::-1])


def test_windows_stay_inside_and_keep_to_scale_and_aspect() -> None:
    rows, columns = 300, 500
    areas = []
    for sample in range(400):
        y, x, height, width = crop_window((rows, columns), (0.05, 0.32), (0.75, 4 / 3), sample_rng(1, sample))
        assert 0 <= y <= rows - height and 0 <= x <= columns - width
        assert 0.7 < width / height < 1.4
        areas.append(height * width / (rows * columns))
    assert 0.045 < min(areas) < 0.08 and 0.29 < max(areas) < 0.325
    assert np.mean(areas) == pytest.approx(0.185, abs=0.02), "areas are uniform"


def test_a_strip_gives_its_largest_central_window() -> None:
    assert crop_window((10, 1000), (0.9, 1.0), (0.75, 4 / 3), sample_rng(0, 0)) == (0, 493, 10, 13)


@pytest.mark.parametrize("shrink", [0.6, 1.2, 1.7, 2.7])
def test_resizing_is_close_to_antialiased_bicubic(shrink: float) -> None:
    image_module = pytest.importorskip("PIL.Image")
    side = round(128 * shrink)
    image = texture((side, side + 3), seed=2)
    expected = np.asarray(image_module.fromarray(image).resize((128, 128), image_module.Resampling.BICUBIC), float)
    error = np.sqrt(np.mean((resize(image, 128) - expected) ** 2))
    assert error < 4.0, "gray levels; without the low-pass this harsh texture is 12 off at the largest shrink"


def test_resizing_reads_nothing_outside_the_window() -> None:
    image = texture((200, 200))
    window = image[40:140, 40:140]
    outside = image.copy()
    outside[:40], outside[140:], outside[:, :40], outside[:, 140:] = 255, 255, 255, 255
    np.testing.assert_array_equal(resize(window, 32), resize(outside[40:140, 40:140], 32))


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.4])
def test_brightness_and_contrast_equal_pillow(factor: float) -> None:
    image_module, enhance = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageEnhance")
    image = texture(seed=4)
    picture = image_module.fromarray(image)
    for ours, theirs in ((adjust_brightness, enhance.Brightness), (adjust_contrast, enhance.Contrast)):
        difference = ours(image, factor).astype(int) - np.asarray(theirs(picture).enhance(factor)).astype(int)
        assert np.abs(difference).max() <= 1
