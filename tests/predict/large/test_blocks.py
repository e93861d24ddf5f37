"""Decoding in blocks finds the cells of the whole image, for any flows, and seams leave no trace in labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from dinocell.images.geometry.resize import resize_maps
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import maximum_matching_accuracy
from dinocell.models import ModelCard
from dinocell.models.training_record import Training
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.large.blocks import decode_blocks
from dinocell.predict.large.regions import ScaledMaps
from dinocell.predict.runner import Runner
from dinocell.segmentation import Segmenter, large_image

Same = Callable[[np.ndarray, np.ndarray], bool]


def random_maps(seed: int, size: tuple[int, int] = (190, 220)) -> np.ndarray:
    """Random hills as flows and probabilities (3, H, W): cells of any shape and size, many with holes, some torn.

    Flows lead uphill, give or take some noise: those that circle end where the number of steps says, which is garbage
    in an image as in a block of it.
    """
    random = np.random.default_rng(seed)
    sigma = (4, 6, 9)[seed % 3]

    def noise(width: float) -> np.ndarray:
        smooth = ndimage.gaussian_filter(random.normal(size=size), width)
        return smooth / smooth.std()

    slopes = np.stack(np.gradient(noise(sigma)))
    flows = slopes / np.abs(slopes).max() * 2 + 0.1 * np.stack([noise(1), noise(1)])
    return np.concatenate([flows, 0.5 * noise(1.5 * sigma)[None] + 0.55]).astype(np.float32)


def in_blocks(maps: Any, config: ObjectiveConfig, block: int, halo: int) -> np.ndarray:
    labels = np.zeros(maps.shape[1:], np.uint32)
    list(decode_blocks(maps, config, labels, block=block, halo=halo))
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("variant", "flow_error"), [("cellpose", 0.0), ("leak_free", 0.0), ("leak_free", 1.0)])
def test_random_flows_decode_in_blocks_as_the_whole(
    seed: int, variant: Any, flow_error: float, cells_agree: Same
) -> None:
    # With `cellpose` and the flow check the longest cell of a block counts: docs/segment.md, "Large images".
    config = ObjectiveConfig(kind="flows", flow_variant=variant, flow_error=flow_error)
    maps = random_maps(seed)
    whole = build_objective(config).decode(maps)
    assert whole.max() > 5
    assert cells_agree(in_blocks(maps, config, 90, 16), whole)


@pytest.mark.parametrize(("dataset", "stem"), [("usiigaci_phase", "set10"), ("codex_tissue", "R001_X003_Y004_00")])
def test_flows_of_real_cells_decode_in_blocks_as_the_whole(
    dataset: str, stem: str, real_data: Path, cells_agree: Same
) -> None:
    labels = read_labels(real_data / "labelled" / dataset / "test" / "masks" / f"{stem}.png")[:500, :500]
    config = ObjectiveConfig(kind="flows")
    objective = build_objective(config)
    maps = objective.targets(labels)
    maps += np.random.default_rng(0).normal(scale=0.1, size=maps.shape).astype(np.float32)
    whole = objective.decode(maps)
    assert whole.max() > 10
    assert cells_agree(in_blocks(maps, config, 150, 32), whole)


def test_maps_of_another_scale_decode_in_blocks_as_the_whole(cells_agree: Same) -> None:
    maps, config = random_maps(1, (120, 150)), ObjectiveConfig(kind="flows", flow_error=0)
    size = (231, 289)
    whole = build_objective(config).decode(resize_maps(maps, size))
    found = in_blocks(ScaledMaps(maps, size), config, 100, 32)
    # Resampling by region rounds differently in the last bit, which may move a pixel from one cell to its neighbour.
    assert maximum_matching_accuracy(whole, found.astype(np.int32)) > 0.98


class Local(nn.Module):
    """Says "cell" where a picture blurred over 11 px lies above its surroundings: wrong near a window's border."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        near, wide = (nn.functional.avg_pool2d(z, side, 1, side // 2) for side in (3, 11))
        return 8 * (near - wide - 0.1)


class Shift(nn.Module):
    """Moves the picture by a few pixels, inventing what comes in at the window's border."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.roll(z, (3, 5), dims=(2, 3))


def test_a_shifting_network_is_tiled_without_seams() -> None:
    z = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(300, 300)), 2).astype(np.float32)
    z /= np.abs(z).max()
    maps = Runner(network=Shift(), window=128, overlap=64).maps(z)
    inner = (slice(8, -8), slice(8, -8))
    error = np.abs(maps[0] - np.roll(z, (3, 5), axis=(0, 1)))[inner]
    # At a window's border the maps are wrong by up to 2 on five pixels, which together weigh 5.5 of 64 at most.
    assert error.max() < 2 * 5.5 / 64 * 2


def test_different_tilings_of_a_real_image_give_the_same_cells(real_data: Path) -> None:
    folder = real_data / "labelled" / "dsb2018_nuclei" / "test" / "images"
    image = to_gray(read_image(folder / "c395870ad9f5a3ae.png"))[:500, :500]
    labels = []
    for window, overlap in ((500, 0), (128, 64), (192, 48), (160, 40)):
        objective = ObjectiveConfig(kind="semantic", min_size=30)
        card = ModelCard(crop_size=window, overlap=overlap, objective=objective)
        labels.append(Segmenter(Local(), card, device="cpu", precision="float32").segment(image).labels.astype(int))
    assert labels[0].max() > 20
    assert min(maximum_matching_accuracy(labels[0], other) for other in labels[1:]) > 0.97


@pytest.mark.parametrize("diameter", [20, 40, 61])
def test_large_images_are_rescaled_as_small_ones(
    diameter: float, make_disks: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_image, "BLOCK", 150)
    image = np.where(make_disks((400, 500), 12, 40) > 0, 200, 20).astype(np.uint8)
    card = ModelCard(crop_size=64, objective=ObjectiveConfig(kind="semantic"), training=Training(diameter=30))
    segmenter = Segmenter(Local(), card, device="cpu", precision="float32")
    whole = segmenter.segment(image, diameter=diameter).labels.astype(int)
    segmenter.large_pixels = 1000
    streamed = segmenter.segment(image, diameter=diameter)
    assert isinstance(streamed.labels, np.memmap) and whole.max() > 50
    # Resampling by region rounds differently in the last bit.
    assert (np.asarray(streamed.labels) > 0).sum() == pytest.approx((whole > 0).sum(), rel=1e-3)
    assert maximum_matching_accuracy(whole, np.asarray(streamed.labels).astype(int)) > 0.99
    assert len(streamed.table()) == whole.max()
