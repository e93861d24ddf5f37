"""The stream of samples: fixed by seed and step whatever the workers, ranks and interruptions; bad files replaced."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dinocell.core.errors import ConfigError
from dinocell.models import ViTConfig
from dinocell.pretrain.config import AugmentConfig, DataConfig, LossConfig, OptimConfig, PretrainConfig
from dinocell.pretrain.data.crops import Batch, Collate, CropDataset, MicroBatches, find_images, make_loader, read_gray

CPU = torch.device("cpu")


def make_config(root: Path, workers: int = 0, batch: int = 3) -> PretrainConfig:
    return PretrainConfig(
        output_dir="unused",
        model=ViTConfig(arch="vit_tiny", depth=1, image_size=32),
        data=DataConfig(root=(str(root),), workers=workers),
        augment=AugmentConfig(global_size=32, local_size=16, local_crops=2),
        optim=OptimConfig(epochs=1, epoch_steps=10, batch_size=batch, warmup_epochs=0),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 256, (40, 50), np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    return tmp_path


def batches(config: PretrainConfig, rank: int = 0, ranks: int = 1, first: int = 0, steps: int = 4) -> list[Batch]:
    dataset = CropDataset(find_images(config.data.root), config)
    sampler = MicroBatches(config, rank=rank, ranks=ranks, first_sample=first, steps=steps)
    return list(make_loader(dataset, config, sampler, CPU))  # type: ignore[arg-type]


def test_every_pass_shows_every_image_once_in_a_new_order(folder: Path) -> None:
    dataset = CropDataset(find_images([str(folder)]), make_config(folder))
    order = [dataset.image_index(number) for number in range(20)]
    passes = [order[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert [dataset.image_index(number) for number in (17, 3, 17)] == [order[17], order[3], order[17]]


def test_batches_do_not_depend_on_the_number_of_workers(folder: Path) -> None:
    for one, other in zip(batches(make_config(folder)), batches(make_config(folder, workers=2)), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_later_start_continues_the_same_batches(folder: Path) -> None:
    config = make_config(folder)
    straight, late = batches(config), batches(config, first=2 * config.optim.batch_size, steps=2)
    for one, other in zip(straight[2:], late, strict=True):
        assert torch.equal(one.global_crops, other.global_crops) and torch.equal(one.masks, other.masks)


def test_ranks_share_one_stream_of_samples(folder: Path) -> None:
    """Two ranks of 3 show, step by step, what one rank of 6 shows; a change in between leaves no gap."""
    config, wide = make_config(folder), make_config(folder, batch=6)
    ranks = [list(MicroBatches(config, rank=rank, ranks=2, first_sample=0, steps=3)) for rank in range(2)]
    one = list(MicroBatches(wide, rank=0, ranks=1, first_sample=0, steps=3))
    assert [a + b for a, b in zip(*ranks, strict=True)] == one
    assert one == [list(range(6 * step, 6 * step + 6)) for step in range(3)]


def test_collate_orders_crops_as_upstream_and_weighs_patches(folder: Path) -> None:
    config = make_config(folder)
    dataset = CropDataset(find_images([str(folder)]), config)
    samples = [dataset[number] for number in (4, 5, 6)]
    batch = Collate(config)(samples)
    assert batch.global_crops.shape == (6, 1, 32, 32) and batch.local_crops.shape == (6, 1, 16, 16)
    np.testing.assert_array_equal(batch.global_crops[3 + 1, 0], samples[1].crops.global_crops[1])
    np.testing.assert_array_equal(batch.local_crops[0 + 2, 0], samples[2].crops.local_crops[0])
    assert batch.masks.shape == (6, 16) and int(batch.masks.any(dim=1).sum()) <= 3
    masked_images = int(batch.masks.any(dim=1).sum())
    assert float(batch.patch_weights.sum()) == pytest.approx(masked_images), "each masked image weighs 1"
    assert torch.equal(batch.masks.flatten().nonzero().flatten(), batch.mask_indices)


def test_nothing_is_masked_without_the_ibot_loss(folder: Path) -> None:
    import dataclasses

    config = dataclasses.replace(make_config(folder), loss=LossConfig(ibot_weight=0.0))
    assert not any(batch.masks.any() for batch in batches(config))


def test_a_damaged_image_is_replaced_and_named(folder: Path) -> None:
    damaged = folder / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    found: dict[str, str] = {}
    for batch in batches(make_config(folder), steps=4):
        found |= batch.unreadable
        assert str(damaged) not in batch.paths and not batch.failed
    assert list(found) == [str(damaged)] and "truncated" in found[str(damaged)]


def test_a_folder_of_damaged_images_is_noticed(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no picture")
    assert batches(make_config(tmp_path), steps=1)[0].failed


def test_sixteen_bit_images_are_stretched_to_eight(tmp_path: Path) -> None:
    ramp = np.linspace(300, 900, 64 * 64).astype(np.uint16).reshape(64, 64)
    cv2.imwrite(str(tmp_path / "ramp.png"), ramp)
    gray = read_gray(str(tmp_path / "ramp.png"), 0.1, 99.9)
    assert gray.dtype == np.uint8 and gray.min() <= 1 and gray.max() >= 254


def test_of_a_curated_folder_only_the_crops_are_used(folder: Path) -> None:
    (folder / "crops").mkdir()
    (folder / "0.png").rename(folder / "crops" / "0.png")
    (folder / "manifest.csv").write_text("crop\n")
    assert find_images([str(folder)]) == [str(folder / "crops" / "0.png")]


def test_an_empty_folder_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root: no image under"):
        find_images([str(tmp_path)])
