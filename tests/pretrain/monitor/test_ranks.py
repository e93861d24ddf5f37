"""Monitors, cost and recipes: analytic ranks, the FLOP count of the published run, recipes that load and differ."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dinocell.core import config as config_module
from dinocell.models import VisionTransformer
from dinocell.pretrain import PretrainConfig
from dinocell.pretrain.config import DataConfig
from dinocell.pretrain.cost import image_flops
from dinocell.pretrain.monitor.ranks import FeatureMonitor, rank_me
from dinocell.training.schedules import scaled_learning_rate

RECIPES = ("vitb8_microscopy", "vitb8_microscopy_as_released", "vits8_cpu", "vitt8_cpu")


def test_rank_me_counts_equally_used_directions() -> None:
    assert rank_me(torch.eye(7)) == pytest.approx(7)
    assert rank_me(torch.eye(7)[:3].repeat(5, 1)) == pytest.approx(3)
    assert rank_me(torch.ones(20, 1) @ torch.randn(1, 9)) == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.zeros(4, 4)) == 0


def test_a_collapse_is_said_in_words() -> None:
    monitor = FeatureMonitor(32, torch.device("cpu"))
    monitor.observe(torch.randn(200, 32))
    healthy = monitor.values(torch.randn(4, 64, 32))
    assert healthy["rankme_cls"] > 20 and monitor.warning(healthy) is None
    for _ in range(10):
        monitor.observe(torch.ones(200, 32))
    problem = monitor.warning(monitor.values(torch.ones(4, 64, 32)))
    assert problem is not None and "collapsing" in problem and "rankme_cls" in problem


def test_the_published_run_costs_what_was_derived(repository: Path) -> None:
    """13.7 TFLOP an image for ViT-B/8 at 512/208 px (spec/ssl, without drop path, which then saves a sixth)."""
    recipe = config_module.load(
        PretrainConfig, repository / "ssl/configs/vitb8_microscopy.yaml", ["data.root=x", "output_dir=x"]
    )
    cost = {
        rate: image_flops(recipe, VisionTransformer(dataclasses.replace(recipe.model, drop_path=rate, registers=0)))
        for rate in (0.0, 0.2)
    }
    assert cost[0.0] == pytest.approx(13.7e12, rel=0.01)
    assert 0.8 < cost[0.2] / cost[0.0] < 0.85


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load(name: str, repository: Path) -> None:
    path = repository / f"ssl/configs/{name}.yaml"
    config = config_module.to_dict(config_module.load(PretrainConfig, path, ["data.root=x", "output_dir=x"]))
    for key, value in config_module.read_recipe(path).items():
        loaded = {part: config[key][part] for part in value} if isinstance(value, dict) else config[key]
        assert loaded == value, key


def test_the_papers_recipe_is_complete_and_is_the_default(repository: Path) -> None:
    """Every key that is not a path or device stands in the file, with the paper's value as the default."""
    path = repository / "ssl/configs/vitb8_microscopy.yaml"
    written = config_module.read_recipe(path)
    recipe = config_module.to_dict(config_module.load(PretrainConfig, path, ["data.root=x", "output_dir=x"]))
    default = config_module.to_dict(PretrainConfig(output_dir="x", data=DataConfig(root=("x",))))
    for key in set(default) - {"output_dir", "device", "weights"}:
        if isinstance(default[key], dict):
            assert set(default[key]) - set(written[key]) <= {"root", "depth"}, key
        else:
            assert key in written
    for group in ("augment", "mask", "dino_head", "ibot_head", "loss", "teacher", "optim"):
        assert recipe[group] == default[group]


def test_the_effective_learning_rate_of_the_paper(repository: Path) -> None:
    config = config_module.load(
        PretrainConfig, repository / "ssl/configs/vitb8_microscopy.yaml", ["data.root=x", "output_dir=x"]
    )
    images = 8 * config.optim.batch_size
    assert scaled_learning_rate(config.optim.base_lr, images, config.optim.lr_rule) == pytest.approx(7.07e-5, rel=1e-3)
    assert config.optim.total_steps == 100_000


def test_the_two_vitb_recipes_differ_as_documented(repository: Path) -> None:
    text, released = (
        config_module.to_dict(
            config_module.load(PretrainConfig, repository / f"ssl/configs/{name}.yaml", ["data.root=x", "output_dir=x"])
        )
        for name in RECIPES[:2]
    )
    assert (text["augment"]["blur_probability"], released["augment"]["blur_probability"]) == (0.01, 0.99)
    assert (text["patch_resize"], released["patch_resize"]) == ("pinv", "bicubic")
