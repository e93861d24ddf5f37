"""Recipes and overrides: what is accepted, and that every mistake is one line naming the key and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from dinocell.core import config
from dinocell.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Train:
    lr: float = config.field(1e-4, "peak learning rate")
    scale: tuple[float, float] = config.field((0.3, 1.0), "crop scale", "share of the area")
    kind: Literal["cosine", "constant"] = config.field("cosine", "decay")
    limit: int | None = config.field(None, "stop after", "steps")

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError(f"train.lr: {self.lr} is negative; give a number ≥ 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    root: tuple[str, ...] = config.field(doc="folders of images")
    seed: int = config.field(0, "seed")
    train: Train = config.field(factory=Train, doc="training")


def test_overrides_win_over_the_recipe_and_it_over_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("root: [a, b]\ntrain: {lr: 2e-4, kind: constant}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\ntrain: {lr: 3e-4}\n")
    loaded = config.load(Recipe, tmp_path / "child.yaml", ["train.scale=[0.5,0.9]", "seed=7"])
    assert loaded == Recipe(root=("a", "b"), seed=7, train=Train(lr=3e-4, kind="constant", scale=(0.5, 0.9)))


def test_a_printed_config_reads_back_equal(tmp_path: Path) -> None:
    loaded = config.load(Recipe, None, ["root=x", "train.lr=1e-5", "train.limit=3"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(loaded))
    assert config.load(Recipe, tmp_path / "config.yaml") == loaded


def test_one_value_for_a_list_is_a_list_of_one() -> None:
    assert config.load(Recipe, None, ["root=my folder"]).root == ("my folder",)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["root=x", "train.lrr=1"], ["train.lrr", "did you mean 'train.lr'"]),
        (["root=x", "lr=1"], ["'lr'", "did you mean 'train.lr'"]),
        (["root=x", "tran.kind=cosine"], ["tran.kind", "did you mean 'train.kind'"]),
        (["root=x", "train.kind=linear"], ["train.kind", "linear", "cosine", "constant"]),
        (["root=x", "train.lr=fast"], ["train.lr", "fast"]),
        (["root=x", "seed=1.5"], ["seed", "1.5"]),
        (["root=x", "train.lr=-1"], ["train.lr", "-1", "≥ 0"]),
        (["root=x", "train=3"], ["train.lr", "group"]),
        (["root=x", "seed"], ["'seed'", "key=value"]),
        (["root=[/a:, b]"], ["root: must be a list of text", "'/a'", "quotes"]),
        ([], ["'root' is required", "folders of images", "root=…"]),
    ],
)
def test_mistakes_name_key_value_and_remedy(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Recipe, None, overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "vitb8_flows.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"does not exist; did you mean .*vitb8_flows\.yaml"):
        config.load(Recipe, tmp_path / "vitb8_flow.yaml")


def test_a_broken_or_circular_recipe_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(Recipe, tmp_path / "broken.yaml")
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        config.load(Recipe, tmp_path / "loop.yaml")


def test_help_lists_every_field_with_type_default_and_unit() -> None:
    text = config.describe(Recipe)
    assert "root  (list of text; required)" in text
    assert "train.kind  (cosine | constant; default cosine)" in text
    assert "train.scale  ([number, number]; default [0.3, 1.0] share of the area)" in text
    assert "train.limit  (integer or null; default null steps)" in text


@pytest.mark.parametrize("recipe", ["ssl/configs", "finetune/configs"])
def test_every_shipped_recipe_loads(recipe: str, repository: Path) -> None:
    from dinocell.finetune import FinetuneConfig
    from dinocell.pretrain import PretrainConfig

    files = sorted((repository / recipe).glob("*.yaml"))
    assert files
    for file in files:
        cls = PretrainConfig if recipe.startswith("ssl") else FinetuneConfig
        loaded = config.load(cls, file, ["data.root=x", "output_dir=y"])
        assert config.from_dict(cls, config.to_dict(loaded)) == loaded
