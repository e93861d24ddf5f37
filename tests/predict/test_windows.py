"""Tiling: windows cover the image once, weights sum to one, and tile → stitch changes nothing."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dinocell.predict.runner import Runner
from dinocell.predict.windows import Stitcher, covering_windows, starts, taper


class Pointwise(nn.Module):
    """Per-pixel maps (z, −2z, 1), so that the tiled result must equal the image itself; counts its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(z))
        return torch.cat([z, -2 * z, torch.ones_like(z)], dim=1)


class PositionDependent(nn.Module):
    """Adds an error that grows towards the window's border, as a network that lacks context there does."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        side = torch.linspace(-1, 1, z.shape[-1])
        return torch.zeros_like(z) + side[None, :] ** 2 + side[:, None]


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


@pytest.mark.parametrize("size", [(64, 64), (64, 65), (130, 200), (65, 300)])
def test_predicted_maps_of_a_pointwise_network_equal_the_image(size: tuple[int, int]) -> None:
    z = np.random.default_rng(1).normal(size=size).astype(np.float32)
    maps = Runner(network=Pointwise(), window=64, overlap=16, batch_size=3).maps(z)
    assert maps.shape == (3, *size) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, np.stack([z, -2 * z, np.ones_like(z)]), atol=1e-5)


def test_a_constant_network_leaves_no_trace_of_the_tiles() -> None:
    maps = Runner(network=Pointwise(), window=64, overlap=8).maps(np.full((201, 333), 0.37, np.float32))
    assert np.abs(maps[0] - 0.37).max() < 1e-6


def test_border_errors_of_windows_leave_no_step() -> None:
    # A network wrong by up to 2 at its window's border: plain cuts leave steps of 1, the taper spreads them out.
    maps = Runner(network=PositionDependent(), window=64, overlap=32).maps(np.zeros((300, 300), np.float32))
    assert np.abs(np.diff(maps[0], axis=0)).max() < 0.1
    assert np.abs(np.diff(maps[0], axis=1)).max() < 0.1


@pytest.mark.parametrize("size", [(63, 64), (64, 20)])
def test_planes_smaller_than_the_window_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least as large"):
        Runner(network=Pointwise(), window=64, overlap=16).maps(np.zeros(size, np.float32))


def test_windows_are_batched_across_images_and_come_back_in_order() -> None:
    random = np.random.default_rng(2)
    images = [(str(index), random.normal(size=(64, 64 + 30 * index)).astype(np.float32)) for index in range(5)]
    model = Pointwise()
    results = list(Runner(network=model, window=64, overlap=16, batch_size=4).stream(images))
    assert [key for key, _ in results] == [key for key, _ in images]
    for (_, z), (_, maps) in zip(images, results, strict=True):
        np.testing.assert_allclose(maps[0], z, atol=1e-5)
    count = sum(len(covering_windows((64, 64 + 30 * index), 64, 16)) for index in range(5))
    assert sum(model.batches) == count and max(model.batches) == 4 and len(model.batches) == -(-count // 4)


def test_prediction_restores_the_mode_and_builds_no_graph() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout2d(0.5)).train()
    z = np.ones((16, 16), np.float32)
    first, second = (Runner(network=model, window=16, overlap=4).maps(z) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_a_runner_of_several_views_leaves_the_network_in_the_mode_that_it_has() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout2d(0.5)).eval()
    runner = Runner(network=model, window=16, overlap=4, views=2)
    for mode in (False, True, False):
        model.train(mode)
        runner.maps(np.ones((16, 16), np.float32))
        assert model.training == mode == model[1].training


def test_progress_counts_the_windows_of_each_frame_and_threads_take_turns() -> None:
    running: list[int] = []

    class Alone(Pointwise):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            running.append(1)
            assert len(running) == 1, "two forward passes at a time"
            time.sleep(0.002)
            running.clear()
            return super().forward(z)

    told: list[tuple[int, int]] = []
    runner = Runner(network=Alone(), window=16, overlap=4, batch_size=2, on_windows=lambda *now: told.append(now))
    z = np.zeros((16, 64), np.float32)
    runner.maps(z)
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(runner.maps, [z] * 8))) == 8
