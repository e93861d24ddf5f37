"""Cached patch tokens of a frozen backbone change nothing but the time of a step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dinocell.core.config import from_dict, load
from dinocell.core.errors import ConfigError
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.config import AugmentConfig
from dinocell.finetune.data import token_cache
from dinocell.finetune.data.augment import possible_turns, random_turn
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.data.run_data import open_items
from dinocell.finetune.data.token_cache import TokenCache, TokenFiles, crop_key
from dinocell.finetune.network import build_model
from dinocell.training.progress import read_metrics

RECIPES = Path(__file__).parents[3] / "finetune" / "configs"
CPU = torch.device("cpu")
PLAIN = {"positions": "grid", "invert": 0.0, "brightness": [1.0, 1.0]}


@pytest.fixture(scope="module")
def recipe(tiny):
    own = {
        "data": {"check_images": 0},
        "augment": PLAIN,
        "backbone": {"depth": 2, "train": "frozen"},
        "decoder": {"neck_width": 32, "drop_rate": 0.1, "detail_width": 8},
        "train": {"steps": 5},
    }
    return lambda root, out, **backbone: tiny(root, out, own, {"backbone": backbone})


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl", "train")]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


def test_every_turn_that_can_be_drawn_is_cached_once():
    for flips, rotations, count in [(True, True, 8), (True, False, 4), (False, True, 4), (False, False, 1)]:
        config = AugmentConfig(flips=flips, rotations=rotations)
        rng = np.random.default_rng(0)
        drawn = {random_turn(config, rng) for _ in range(200)}
        assert len(possible_turns(config)) == count and set(possible_turns(config)) == drawn


@pytest.fixture(scope="module")
def plain_losses(disks_dataset, tmp_path_factory, recipe) -> list[float]:
    """Of a run whose frozen backbone works in every step."""
    return losses(run(recipe(disks_dataset, tmp_path_factory.mktemp("plain") / "run")).folder)


def test_cached_training_has_the_losses_of_uncached_training(
    disks_dataset, plain_losses, tmp_path, monkeypatch, recipe
):
    said: list[str] = []
    monkeypatch.setattr(token_cache.log, "info", said.append)
    stored_tokens = TokenCache.tokens

    def without_backbone(cache: TokenCache, z: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(cache.model, "encode", None)
            return stored_tokens(cache, z)

    monkeypatch.setattr(TokenCache, "tokens", without_backbone)
    cached = losses(run(recipe(disks_dataset, tmp_path, cache_tokens=True)).folder)
    assert len(set(plain_losses)) == 5
    assert cached == pytest.approx(plain_losses, rel=1e-3)  # tokens are kept as float16
    # 6 images × 9 windows × 8 turns × 16 tokens × 192 numbers × 2 bytes
    assert size_of(tmp_path / "tokens") == pytest.approx(6 * 9 * 8 * 16 * 192 * 2, rel=0.01)
    (announced,) = [line for line in said if line.startswith("caching patch tokens of")]
    assert "432 crops (6 images" in announced and "GiB in" in announced and "about" in announced


def test_disk_is_bounded_and_the_rest_is_computed_in_every_step(disks_dataset, plain_losses, tmp_path, recipe):
    limit = 2.5 * 9 * 8 * 16 * 192 * 2  # two and a half images
    cached = losses(run(recipe(disks_dataset, tmp_path, cache_tokens=True, cache_gb=limit / 2**30)).folder)
    assert len(list((tmp_path / "tokens").rglob("*.npy"))) == 2
    assert size_of(tmp_path / "tokens") <= limit
    assert cached == pytest.approx(plain_losses, rel=1e-3)


def test_interrupted_build_goes_on_and_other_weights_never_meet_these_tokens(
    disks_dataset, tmp_path, monkeypatch, recipe
):
    computed = []
    original = TokenFiles.records
    monkeypatch.setattr(TokenFiles, "records", lambda *args: computed.append(1) or original(*args))

    def build(**backbone: object) -> None:
        config = recipe(disks_dataset, tmp_path, cache_tokens=True, **backbone)
        store = ImageStore(open_items(config, "train"), config, print)
        TokenCache(build_model(config, 3), store, config, CPU, torch.float32)

    build()
    assert len(computed) == 6
    for path in sorted((tmp_path / "tokens").rglob("*.npy"))[:2]:
        path.unlink()
    build()
    assert len(computed) == 8
    build(layerscale_init=0.5)
    assert len(computed) == 14 and len(list((tmp_path / "tokens").iterdir())) == 2


def test_images_at_another_scale_are_other_images(disks_dataset, tmp_path, recipe):
    files = set()
    for diameter in (0.0, 12.0, 0.0):
        config = recipe(disks_dataset, tmp_path, cache_tokens=True)
        config = replace(config, data=replace(config.data, max_diameter=diameter))
        model, store = build_model(config, 3), ImageStore(open_items(config, "train"), config, print)
        cache = TokenCache(model, store, config, CPU, torch.float32)
        image = store.get(0).image
        crop = torch.from_numpy(image[None, None, : config.crop_size, : config.crop_size].copy())
        torch.testing.assert_close(cache.tokens(crop), model.eval().encode(crop), rtol=2e-3, atol=2e-3)
        files.add(len(list((tmp_path / "tokens").rglob("*.npy"))))
    assert files == {6, 12}


def test_crops_are_recognized_by_their_values():
    crop = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert crop_key(crop) == crop_key(np.asfortranarray(crop)) != crop_key(crop[::-1])
    assert crop_key(np.zeros((2, 2), np.float32)) == crop_key(-np.zeros((2, 2), np.float32))


def test_only_crops_off_the_grid_go_through_the_backbone(disks_dataset, tmp_path, monkeypatch, recipe):
    config = recipe(disks_dataset, tmp_path, cache_tokens=True)
    model, store = build_model(config, 3).eval(), ImageStore(open_items(config, "train"), config, print)
    cache = TokenCache(model, store, config, CPU, torch.float32)
    size = config.crop_size
    shapes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda z: shapes.append(len(z)) or encode(z))
    image = store.get(1).image
    crops = [image[:size, :size], image[:size, :size][::-1], image[1 : size + 1, :size], -image[:size, :size]]
    z = torch.from_numpy(np.stack(crops)[:, None])
    with torch.inference_mode():
        maps = cache(z)
        assert shapes == [2]
        torch.testing.assert_close(maps, model(z), rtol=2e-3, atol=2e-3)


def test_what_cannot_be_cached_is_refused_with_what_to_set(tmp_path):
    with pytest.raises(ConfigError, match=r"set backbone.train=frozen augment.positions=grid .*augment.invert=0"):
        from_dict(FinetuneConfig, {"backbone": {"cache_tokens": True}})
    with pytest.raises(ConfigError, match="grid fixes place and size"):
        from_dict(FinetuneConfig, {"augment": {"positions": "grid", "cell_focus": 0.5}})


def test_cached_recipe_is_valid_and_trains_the_decoder_only():
    config = load(FinetuneConfig, str(RECIPES / "vits8_cached_cpu.yaml"), [])
    assert config.backbone.cache_tokens and config.backbone.train == "frozen"


def test_forward_with_known_tokens_equals_forward(recipe):
    model = build_model(recipe(Path("x"), Path("y")), 3).eval()
    z = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(z, model.encode(z)), model(z), rtol=0, atol=0)
