"""Filters: what a biologist would throw away goes, what she would keep stays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dinocell.core.errors import ConfigError
from dinocell.curation import FilterConfig
from dinocell.curation.duplicates import (
    DuplicateIndex,
    appearance,
    perceptual_hash,
    thumbnail,
    thumbnail_from_text,
    thumbnail_to_text,
)
from dinocell.curation.filters import check_crop, check_plane, score_crop
from dinocell.images.gray.contrast import histogram, to_uint8

RNG = np.random.default_rng(3)
LIMITS = FilterConfig()


def cells(seed: int = 0, count: int = 30, size: int = 256) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((size, size), 20, np.uint8)
    for _ in range(count):
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        cv2.ellipse(image, centre, (9, 14), float(rng.integers(180)), 0, 360, int(rng.integers(90, 220)), -1)
    noisy = cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 3, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def reason_of_plane(plane: np.ndarray) -> str:
    counts = histogram(plane) if plane.dtype in (np.uint8, np.uint16) else None
    rejection = check_plane(plane, LIMITS, counts)
    return rejection.reason if rejection else ""


def reason_of_crop(image: np.ndarray) -> str:
    rejection = check_crop(score_crop(to_uint8(image)), LIMITS)
    return rejection.reason if rejection else ""


@pytest.mark.parametrize("count", [1, 30, 300])
def test_cells_pass(count: int) -> None:
    assert reason_of_plane(cells(count=count)) == reason_of_crop(cells(count=count)) == ""


@pytest.mark.parametrize(
    ("plane", "reason"),
    [
        (np.full((100, 100), 7, np.uint8), "constant"),
        (np.full((100, 100), np.nan, np.float32), "constant"),
        (cells()[:40], "too small"),
        ((cells() > 60).astype(np.uint8) * 255, "not microscopy-like"),
        ((cells() > 60).astype(np.float32), "not microscopy-like"),
        (np.where(RNG.random((256, 256)) < 0.01, RNG.integers(1, 255, (256, 256)), 0).astype(np.uint8), "almost empty"),
        ((cells().astype(np.float32) * 13.5).clip(0, 255).astype(np.uint8), "saturated"),
        ((cells().astype(np.uint32) * 200).clip(0, 4095).astype(np.uint16), "saturated"),
    ],
)
def test_planes_that_are_no_good(plane: np.ndarray, reason: str) -> None:
    assert reason_of_plane(plane) == reason


def test_noise_and_uneven_light_are_empty() -> None:
    noise = RNG.normal(500, 20, (256, 256))
    light = np.linspace(0, 400, 256)[:, None] * np.linspace(0.5, 1, 256)
    for image in (noise, RNG.poisson(3, (256, 256)).astype(float), noise + light):
        assert reason_of_crop(image) == "almost empty"


def test_defocus_is_low_focus_even_under_noise() -> None:
    blurred = cv2.GaussianBlur(cells().astype(np.float32), (0, 0), 25)
    assert reason_of_crop(blurred) == "low focus"
    assert reason_of_crop(blurred + RNG.normal(0, 0.05, blurred.shape)) == "low focus"


def test_bad_limits_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^max_saturated: must be between 0 and 1, got 2"):
        FilterConfig(max_saturated=2)


def index() -> DuplicateIndex:
    return DuplicateIndex(LIMITS.max_hash_distance, LIMITS.min_correlation)


def test_copies_are_found_and_named() -> None:
    known = index()
    original = cells(1)
    known.add("original", appearance(thumbnail(original)))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", original)[1], cv2.IMREAD_GRAYSCALE)
    smaller = cv2.resize(original, (200, 200), interpolation=cv2.INTER_AREA)
    brighter = (original * 0.8 + 20).astype(np.uint8)
    for copy in (original, jpeg, smaller, brighter):
        assert known.find(appearance(thumbnail(copy))) == "original"


def test_other_fields_are_not_duplicates() -> None:
    known = index()
    for seed in range(40):
        image = cells(seed)
        assert known.find(appearance(thumbnail(image))) is None
        known.add(str(seed), appearance(thumbnail(image)))
    for turned in (cells(0)[::-1], cells(0).T, np.roll(cells(0), 60, 1)):
        assert known.find(appearance(thumbnail(np.ascontiguousarray(turned)))) is None


def test_banding_misses_no_close_hash() -> None:
    small = thumbnail(cells(5))
    code = perceptual_hash(small)
    for _ in range(50):
        flipped = code
        for bit in RNG.permutation(64)[: LIMITS.max_hash_distance]:
            flipped ^= 1 << int(bit)
        known = index()
        known.add("a", appearance(small))
        assert list(known._candidates(flipped)) == [0]


def test_thumbnails_survive_the_journal() -> None:
    small = thumbnail(cells())
    np.testing.assert_array_equal(thumbnail_from_text(thumbnail_to_text(small)), small)


@pytest.mark.parametrize("shape", [(1, 300), (300, 2), (10, 10), (15, 40), (16, 16), (17, 40)])
@pytest.mark.filterwarnings("error")
def test_slivers_are_judged_whatever_the_limits(shape: tuple[int, int]) -> None:
    off = FilterConfig(min_side=0, min_focus=0, min_structure=0, min_occupied=0)
    plane = RNG.integers(0, 200, shape).astype(np.uint8)
    rejection = check_plane(plane, off, histogram(plane))
    if min(shape) < 16:
        assert rejection is not None and rejection.reason == "too small"
    else:
        assert rejection is None and check_crop(score_crop(plane), off) is None
