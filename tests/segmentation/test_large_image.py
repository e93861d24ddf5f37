"""Bounded memory changes nothing: large images have the cells of small ones, decoded block by block."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dinocell.core.errors import DataError
from dinocell.datasets.synthetic.sample import make_image
from dinocell.images.mapped import release, scratch_array
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.large.blocks import decode_blocks
from dinocell.segmentation import Segmenter, large_image, segment

Make = Callable[..., Any]


@lru_cache
def field(size: tuple[int, int], seed: int) -> np.ndarray:
    """Cells of the embedded sample put side by side to fill an image, int32."""
    # Tiles meet in hard cuts: cells with straight sides that touch, the hardest for a block border.
    tiles = [[make_image(seed + 7 * row + column, 160)[1] for column in range(3)] for row in range(3)]
    count = 0
    for row in tiles:
        for tile in row:
            tile[tile > 0] += count
            count = int(tile.max())
    return np.block(tiles)[: size[0], : size[1]]


def in_blocks(maps: np.ndarray, config: ObjectiveConfig, **sides: int) -> np.ndarray:
    labels = np.zeros(maps.shape[1:], np.uint32)
    counts = list(decode_blocks(maps, config, labels, **sides))
    assert counts[-1] == labels.max() == len(np.unique(labels)) - (0 in labels)
    return labels


@pytest.mark.parametrize("kind", ["flows", "distance", "semantic"])
@pytest.mark.parametrize(("block", "halo"), [(130, 16), (250, 48)])
def test_block_decoding_equals_whole_image_decoding(kind: Any, block: int, halo: int, cells_agree: Make) -> None:
    config = ObjectiveConfig(kind=kind)
    objective = build_objective(config)
    maps = objective.targets(field((420, 470), 0))
    if kind == "semantic":
        maps = 20 * maps - 10
    whole = objective.decode(maps)
    assert whole.max() > 25
    assert cells_agree(in_blocks(maps, config, block=block, halo=halo), whole)


def test_block_decoding_of_imperfect_maps(cells_agree: Make) -> None:
    config = ObjectiveConfig(kind="flows", flow_variant="leak_free")
    objective = build_objective(config)
    random = np.random.default_rng(0)
    maps = objective.targets(field((420, 470), 3))
    maps += random.normal(scale=0.15, size=maps.shape).astype(np.float32)
    whole = objective.decode(maps)
    assert whole.max() > 25
    found = in_blocks(maps, config, block=128, halo=64)
    assert cells_agree(found, whole)


@pytest.mark.parametrize("block", [120, 170])
def test_cells_longer_than_block_and_halo_stay_whole(block: int, cells_agree: Make) -> None:
    labels = np.zeros((400, 420), np.int32)
    labels[30:40, 5:410] = 1  # across all blocks
    labels[60:395, 200:212] = 2
    labels[60:380, 300:420] = 3  # larger than a block, at the image's rim
    labels[150:170, 20:40] = 4
    config = ObjectiveConfig(kind="flows", max_size_fraction=0.5)
    maps = build_objective(config).targets(labels)
    assert cells_agree(in_blocks(maps, config, block=block, halo=16), labels)


def test_the_size_limit_is_that_of_the_whole_image(cells_agree: Make) -> None:
    labels = np.zeros((300, 300), np.int32)
    labels[20:120, 20:120] = 1  # 11 % of the image, most of a block
    labels[160:290, 100:290] = 2  # 27 %
    config = ObjectiveConfig(kind="flows", max_size_fraction=0.2)
    maps = build_objective(config).targets(labels)
    assert cells_agree(in_blocks(maps, config, block=110, halo=8), np.where(labels == 1, 1, 0))


def test_a_cell_past_the_largest_halo_is_kept_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((60, 900), np.int32)
    labels[20:40, 10:890] = 1
    maps = 20 * build_objective(ObjectiveConfig(kind="semantic")).targets(labels) - 10
    found = in_blocks(maps, ObjectiveConfig(kind="semantic"), block=60, halo=8, max_halo=32)
    assert found.max() >= 1 and "larger than 32 px; it may be cut" in capsys.readouterr().err


def test_large_images_give_the_same_cells_as_small_ones(
    monkeypatch: pytest.MonkeyPatch, make_oracle: Make, make_disks: Make, cells_agree: Make
) -> None:
    truth = make_disks((400, 500))
    image, segmenter = make_oracle(truth)
    monkeypatch.setattr(large_image, "BLOCK", 150)
    whole = segmenter.segment(image)
    segmenter.large_pixels = 1000
    streamed = segmenter.segment(image, pixel_size=0.5)
    assert isinstance(streamed.labels, np.memmap) and streamed.labels.dtype == np.uint16
    assert cells_agree(streamed.labels, truth) and cells_agree(whole.labels, truth)
    table = streamed.table()
    assert len(table) == whole.count and table["area_um2"].sum() == (truth > 0).sum() / 4
    assert segment(np.full((70, 80), 7, np.uint8), segmenter).max() == 0


def test_nan_pixels_of_large_images_hold_no_cell() -> None:
    class Bright(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 20 * (z - 0.5)

    card = ModelCard(crop_size=64, objective=ObjectiveConfig(kind="semantic"))
    segmenter = Segmenter(Bright(), card, device="cpu", precision="float32")
    segmenter.large_pixels = 1000
    image = np.zeros((200, 200), np.float32)
    image[50:90, 50:90] = 1
    image[50:60, 50:90] = np.nan
    labels = segmenter.segment(image).labels
    assert labels[50:60, 50:90].max() == 0 and labels[62:88, 52:88].min() == 1


def test_too_little_scratch_space_is_said_before_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"GiB of scratch space are needed, .* GiB are free"):
        scratch_array((10**7, 10**7), np.float32, tmp_path)


def test_scratch_files_vanish(tmp_path: Path) -> None:
    array = scratch_array((300, 300), np.float32, tmp_path)
    array[5:7] = 3
    release(array)
    assert array[5:7].min() == 3 and array[7:].max() == 0 and list(tmp_path.iterdir()) == []
