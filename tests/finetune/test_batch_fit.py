"""Out of memory: the message names what fits, and auto_batch finds it. The device's memory is simulated."""

from pathlib import Path

import pytest
import torch

from dinocell.core.config import from_dict
from dinocell.core.errors import DataError
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.batch_fit import largest_that_fits, micro_batches, smaller_crops
from dinocell.models import SegmentationModel
from dinocell.training.progress import read_metrics


@pytest.fixture
def recipe(tiny):
    own = {
        "crop_size": 48,
        "input_size": 48,
        "overlap": 24,
        "data": {"check_images": 0},
        "backbone": {"layerscale_init": 1e-5},
        "train": {"steps": 2, "batch_size": 8},
        "validate": {"max_images": 1},
    }
    return lambda root, out, **train: tiny(root, out, own, {"train": train})


@pytest.fixture
def memory_of(monkeypatch):
    """Lets forward passes in training fail above a number of pixels, as a full device would."""
    original = SegmentationModel.forward

    def limit(pixels: int) -> None:
        def forward(self, z, tokens=None):
            if torch.is_grad_enabled() and z.numel() > pixels:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return original(self, z, tokens)

        monkeypatch.setattr(SegmentationModel, "forward", forward)

    return limit


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl", "train")]


def test_message_names_the_largest_batch_that_fits(disks_dataset, tmp_path, memory_of, recipe):
    memory_of(3 * 48 * 48)
    with pytest.raises(DataError, match=r"with 8 crops of 48 px at a time; 2 would fit: set train.accumulate=4 ") as at:
        run(recipe(disks_dataset, tmp_path))
    assert "train.auto_batch=true" in str(at.value) and "\n" not in str(at.value)


def test_message_names_the_largest_crop_when_no_batch_fits(disks_dataset, tmp_path, memory_of, recipe):
    memory_of(25 * 25)
    with pytest.raises(DataError, match=r"not even one crop of 48 px fits; the largest that does: crop_size=24 input_"):
        run(recipe(disks_dataset, tmp_path))
    with pytest.raises(DataError, match=r"crop_size=24 input_size=24 overlap=6"):
        run(recipe(disks_dataset, tmp_path, auto_batch=True))


def test_auto_batch_trains_as_one_batch_would(disks_dataset, tmp_path, memory_of, recipe):
    run(recipe(disks_dataset, tmp_path / "whole"))
    memory_of(5 * 48 * 48)
    out = run(recipe(disks_dataset, tmp_path / "auto", auto_batch=True)).folder
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert "accumulate: 2" in (out / "config.yaml").read_text()


def test_search_finds_the_limit_wherever_it_lies():
    candidates = [1, 2, 3, 4, 6, 12]
    for limit in range(14):
        expected = max((c for c in candidates if c <= limit), default=None)
        assert largest_that_fits(candidates, lambda n, limit=limit: n <= limit) == expected


def test_candidates_can_be_trained(tmp_path):
    paper = FinetuneConfig()
    assert micro_batches(paper, 2) == [1, 2, 4]
    for crop in smaller_crops(paper):
        size = crop * 896 // 512
        from_dict(FinetuneConfig, {"crop_size": crop, "input_size": size, "overlap": crop // 4})
