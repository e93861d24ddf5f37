"""A recipe is found by its path or by its name, in the repository and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinocell.cli.train import curate, finetune, pretrain
from dinocell.cluster.profile import take_profile
from dinocell.core import recipes
from dinocell.core.errors import ConfigError
from dinocell.core.recipes import FOLDERS, find_recipe, recipe_names


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_shipped_recipe_is_found_by_name(
    kind: recipes.Kind, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted((repository / FOLDERS[kind]).glob("*.yaml"))
    assert [find_recipe(name, kind) for name in recipe_names(kind)] == files


def test_a_name_and_a_path_give_the_same_settings(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["data.root=x", "output_dir=o"]
    for parse, kind in ((finetune.parse, "finetune"), (pretrain.parse, "ssl")):
        path = str(repository / kind / "configs" / "vitt8_cpu.yaml")
        assert parse(["--config", "vitt8_cpu", *more]) == parse([f"--config={path}", *more])  # type: ignore[operator]
    assert curate.parse(["a", "--out", "o", "--config", "source_idr"]).out == "o"
    assert take_profile(["--profile", "8gpu"])[0].gpus_per_node == 8


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vitt8_cpu").write_text("seed: 7\n")
    assert finetune.parse(["--config", "vitt8_cpu", "data.root=x"]).seed == 7


def test_an_installed_package_has_its_own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes" / "ssl").mkdir(parents=True)
    (tmp_path / "recipes" / "ssl" / "mine.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(recipes, "INSTALLED", tmp_path / "recipes")
    assert recipe_names("ssl") == ["mine"]
    assert find_recipe("mine", "ssl") == tmp_path / "recipes" / "ssl" / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vitt8_gpu", "did you mean 'vit"),
        ("absent.yaml", r"'absent\.yaml' does not exist"),
        ("ssl/confgs/vitt8_cpu.yaml", "did you mean 'vitt8_cpu'"),
        ("quux", "known by name: .*vitb8_flows"),
    ],
)
def test_a_mistyped_name_names_the_nearest(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        find_recipe(text, "finetune")
