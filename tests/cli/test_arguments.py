"""Files, options and settings are told apart alike by every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dinocell.cli.arguments import Syntax, named, setting, split
from dinocell.cli.train import curate, inspect, prepare
from dinocell.core.errors import ConfigError
from dinocell.curation import CurateConfig

SYNTAX = Syntax(config=CurateConfig, settings={"--out": "out", "--size": "size"}, switches={"--merge": "merge=true"})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["dose=high.png", "size=64", "b2.x=3"])
def test_a_path_that_exists_is_a_file_whatever_its_name(name: str, here: Path) -> None:
    assert split([name], SYNTAX).settings == (name,)
    (here / name).write_bytes(b"")
    assert split([name], SYNTAX).files == (name,)


def test_patterns_and_paths_that_no_key_looks_like_are_files(here: Path) -> None:
    (here / "dose=1.png").write_bytes(b"")
    given = split(["dose=*.png", "plate 1/dose=2.png", "a.png", "size=64", "filters.min_side=9"], SYNTAX)
    assert given.files == ("dose=*.png", "plate 1/dose=2.png", "a.png")
    assert given.settings == ("size=64", "filters.min_side=9")


def test_after_two_dashes_there_are_only_files() -> None:
    assert split(["size=3", "--", "size=4", "--out"], SYNTAX).files == ("size=4", "--out")


def test_options_stand_for_settings_and_keep_text_as_it_is() -> None:
    given = split(["--out", "2024_01", "--size=32", "--merge", "a"], SYNTAX)
    assert curate.configure(given).out == "2024_01"
    assert curate.configure(given).size == 32 and curate.configure(given).merge
    assert setting(CurateConfig, "axes", "ZYX") == 'axes="ZYX"'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sise", "3"], "unknown option '--sise'; options: --out, --size, --merge, --config"),
        (["--size"], "--size needs a value"),
        (["--config"], "--config needs a value"),
    ],
)
def test_mistakes_in_options_are_named(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split(arguments, SYNTAX)


def test_curate_takes_a_file_with_an_equals_sign(here: Path) -> None:
    (here / "dose=high.png").write_bytes(b"")
    assert curate.parse(["dose=high.png", "--out", "o"]).sources == ("dose=high.png",)
    with pytest.raises(ConfigError, match="unknown key 'dose'"):
        curate.parse(["a.png", "dose=low.png", "--out", "o"])


def test_prepare_takes_a_folder_with_an_equals_sign(here: Path) -> None:
    (here / "day=1").mkdir()
    assert prepare.parse(["pairs", "day=1", "--out", "o", "name=x"]).src == "day=1"


def test_inspect_takes_folders_settings_and_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "day=1").mkdir()
    assert inspect.main(["day=1", "crop_size=64", "input_size=64", "overlap=16", "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "- day=1" in said and "crop_size: 64" in said


def test_a_name_is_no_part_of_a_path_that_exists(here: Path) -> None:
    assert named("before=runs/a") == ("before", "runs/a") and named("runs/a") == ("", "runs/a")
    (here / "a=b").mkdir()
    assert named("a=b") == ("", "a=b")


@pytest.mark.parametrize("parse", [curate.parse, prepare.parse])
def test_what_is_missing_is_said_with_the_usage(parse: Callable[[list[str]], object]) -> None:
    with pytest.raises(ConfigError, match="--out DIR"):
        parse(["pairs"])
