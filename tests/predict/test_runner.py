"""The runner: tiles are stitched to the image, large images give the same, one forward pass at a time is counted."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.images.gray.streamed import StreamedInput
from dinocell.predict.runner import Runner
from dinocell.predict.windows import covering_windows


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


class Local(nn.Module):
    """A small random convolutional network with the three maps of the flows objective."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.layers(z)
        return maps


@pytest.mark.parametrize("size", [(64, 64), (150, 211), (211, 70)])
@pytest.mark.parametrize("overlap", [0, 16, 40])
def test_streamed_maps_equal_whole_image_maps_bit_for_bit(size: tuple[int, int], overlap: int) -> None:
    gray = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    source, model = StreamedInput(gray, PreprocessConfig()), Local()
    z = source.region(slice(0, size[0]), slice(0, size[1]))
    runner = Runner(network=model, window=64, overlap=overlap)
    finished, maps = list(runner.large(source, channels=3))[-1]
    assert finished == size[0]
    np.testing.assert_array_equal(maps, runner.maps(z))


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
