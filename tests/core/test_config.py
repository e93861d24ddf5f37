"""Recipes and overrides: what is accepted, and that every mistake is one line naming the key and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import pytest

from dinocell.core import config
from dinocell.core.errors import ConfigError
from dinocell.core.fields import Settings, field


@dataclass(frozen=True, kw_only=True)
class Train:
    lr: float = field(1e-4, "peak learning rate")
    scale: tuple[float, float] = field((0.3, 1.0), "crop scale", "share of the area")
    kind: Literal["cosine", "constant"] = field("cosine", "decay")
    limit: int | None = field(None, "stop after", "steps")

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError(f"train.lr: {self.lr} is negative; give a number ≥ 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    root: tuple[str, ...] = field(doc="folders of images")
    seed: int = field(0, "seed")
    train: Train = field(factory=Train, doc="training")


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


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    size: int = field(1, "size", "px", at_least=1)
    share: float = field(0.5, "share", at_least=0, at_most=1)
    open: float = field(0.5, "open", above=0, below=1)
    rate: float = field(1e-4, "rate", above=0, advanced=True)
    span: tuple[float, float] = field((0.1, 0.2), "span", above=0, rising=True)
    views: int = field(1, "views", one_of=(1, 2, 4), applies_to=("kind=b",))
    kind: Literal["a", "b"] = field("a", "kind")
    depth: int | None = field(None, "depth", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("share", "size")


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    inner: Inner = field(factory=Inner, doc="inner")
    last: int = field(0, "last", at_least=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.size=0", "inner.size: must be at least 1, got 0"),
        ("inner.share=1.5", "inner.share: must be between 0 and 1, got 1.5"),
        ("inner.share=.nan", "inner.share: must be between 0 and 1, got nan"),
        ("inner.open=1", "inner.open: must be above 0 and below 1, got 1.0"),
        ("inner.rate=0", "inner.rate: must be above 0, got 0.0"),
        ("inner.span=[0,1]", "inner.span: every number must be above 0, got [0.0, 1.0]"),
        ("inner.span=[3,2]", "inner.span: must rise, got [3.0, 2.0]; write [2.0, 3.0]"),
        ("inner.views=3", "inner.views: must be one of 1, 2, 4, got 3"),
        ("inner.depth=0", "inner.depth: must be at least 1, got 0"),
        ("inner.share=1", "inner.share: must be below size=1, got 1"),
        ("last=-1", "last: must be at least 0, got -1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_whole_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, None, [override])
    assert str(caught.value) == message


def test_bounds_and_choices_hold_for_instances_made_in_python() -> None:
    with pytest.raises(ConfigError, match=r"^size: must be at least 1, got 0$"):
        Inner(size=0)
    with pytest.raises(ConfigError, match=r"^kind: must be one of a, b, got c$"):
        replace(Inner(), kind="c")  # type: ignore[arg-type]


def test_help_shows_bounds_and_sets_advanced_settings_apart() -> None:
    everyday, _, advanced = config.describe(Outer).partition("\nAdvanced:\n")
    assert "inner.size  (integer, 1 …; default 1 px)" in everyday
    assert "inner.share  (number, 0 … 1; default 0.5)" in everyday
    assert "inner.open  (number, > 0 … < 1; default 0.5)" in everyday
    assert "inner.views  (1 | 2 | 4; default 1)\n      views (with kind=b)" in everyday
    assert "last  (integer, 0 …; default 0)" in everyday
    assert advanced.startswith("  inner.rate  (number, > 0; default 0.0001)")
    assert "Advanced" not in config.describe(Recipe)


def recipes() -> list[type]:
    from dinocell.adapt.config import AdaptConfig
    from dinocell.cluster.profile import Profile
    from dinocell.curation import CurateConfig
    from dinocell.datasets.prepare.config import PrepareConfig
    from dinocell.finetune import FinetuneConfig
    from dinocell.pretrain import PretrainConfig

    return [PretrainConfig, FinetuneConfig, CurateConfig, PrepareConfig, AdaptConfig, Profile]


def groups(cls: type) -> Iterator[type]:
    yield cls
    for hint in get_type_hints(cls).values():
        if is_dataclass(hint):
            yield from groups(cast(type, hint))


def is_number(cls: type, name: str) -> bool:
    hint: Any = get_type_hints(cls)[name]
    members = {hint, *get_args(hint)}
    return bool(members & {int, float}) and get_origin(hint) is not Literal


@pytest.mark.parametrize("cls", recipes(), ids=lambda cls: cls.__name__)
def test_every_setting_is_described_and_every_number_bounded(cls: type) -> None:
    for group in groups(cls):
        assert issubclass(group, Settings), group
        for item in fields(group):
            assert item.metadata["doc"], f"{group.__name__}.{item.name}"
            if is_number(group, item.name):
                assert item.metadata["bounds"] or item.metadata["one_of"], f"{group.__name__}.{item.name}"


def outside(item: Field[Any]) -> float:
    """A number that the field must refuse."""
    bounds = item.metadata["bounds"]
    if bounds.at_least is not None:
        return float(bounds.at_least - 1)
    if bounds.above is not None:
        return float(bounds.above)
    return 1000.0


def required(cls: type) -> list[str]:
    return [f"{name}=x" for name, item in config.leaves(cls) if item.default == "???"]


@pytest.mark.parametrize("cls", recipes(), ids=lambda cls: cls.__name__)
def test_every_recipe_refuses_values_out_of_bounds_by_their_key(cls: type) -> None:
    given = required(cls)
    config.load(cls, None, given)
    seen: set[str] = set()
    for name, item in config.leaves(cls):
        if not (item.metadata["bounds"] or item.metadata["one_of"]):
            continue
        bad: Any = outside(item)
        kind = type(item.default) if item.default not in (None, MISSING) else int
        bad = [bad, bad] if kind is tuple else [bad] if item.default is MISSING else int(bad) if kind is int else bad
        group, _, last = name.rpartition(".")
        owner: Any = cls
        for part in filter(None, group.split(".")):
            owner = get_type_hints(owner)[part]
        with pytest.raises(ConfigError, match=rf"^{last}: .*must be"):
            config.load(owner, None, [*required(owner), f"{last}={bad}"])
        if group not in seen:  # the whole recipe takes long to make
            seen.add(group)
            with pytest.raises(ConfigError, match=rf"^{re.escape(name)}: .*must be"):
                config.load(cls, None, [*given, f"{name}={bad}"])
