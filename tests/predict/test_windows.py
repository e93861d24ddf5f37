"""Tiling: windows cover the image once, weights sum to one, and tile → stitch changes nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinocell.predict.windows import Stitcher, covering_windows, starts, taper

SIZES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(height=SIZES, width=SIZES, window=st.integers(1, 40), data=st.data())
def test_tile_then_stitch_is_the_identity(height: int, width: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    image = np.random.default_rng(0).normal(size=(2, height, width)).astype(np.float32)
    stitcher = Stitcher(2, (height, width), window, overlap)
    tiles = covering_windows((height, width), window, overlap)
    for at in tiles:
        stitcher.add(at, image[(slice(None), *at.slices)])
    # Up to 40 × 40 windows meet in a pixel: as many float32 roundings of the sum and of the sum of weights.
    np.testing.assert_allclose(stitcher.maps, image, rtol=2e-5, atol=2e-5)
    assert len({(at.y, at.x) for at in tiles}) == len(tiles), "a window would run twice"
    assert all(at.y + at.height <= height and at.x + at.width <= width for at in tiles)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), window=st.integers(2, 600), data=st.data())
def test_neighbouring_windows_share_the_overlap_and_are_as_few_as_possible(
    length: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    positions = starts(length, window, overlap)
    assert positions[0] == 0 and positions[-1] == max(0, length - window)
    assert all(window - (b - a) >= overlap for a, b in itertools.pairwise(positions))
    fewest = 1 + max(0, -(-(length - window) // (window - overlap)))
    assert len(positions) == fewest


def test_livecell_image_takes_four_windows() -> None:
    # The authors' code runs 9 forwards on 520 x 704, of which 4 are different.
    assert [(at.y, at.x) for at in covering_windows((520, 704), 512, 128)] == [(0, 0), (0, 192), (8, 0), (8, 192)]


def test_taper_gives_the_pixels_near_a_window_border_almost_no_weight() -> None:
    size = (512, 896)
    first, second = covering_windows(size, 512, 128)[:2]
    assert taper(first, size)[100, 511] < 0.01
    assert taper(second, size)[100, 511 - second.x] > 0.99


@pytest.mark.parametrize(("length", "window", "overlap"), [(0, 8, 2), (10, 8, 8), (10, 0, 0), (10, 8, -1)])
def test_impossible_windows_are_refused(length: int, window: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="no windows"):
        starts(length, window, overlap)
