"""One command scores a model on a dataset, or folders of label images, and refuses the options of the other form."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.cli.use import evaluate
from dinocell.cli.use.evaluate import FolderArguments, ModelArguments, parse
from dinocell.core.errors import ConfigError


def test_a_model_on_a_dataset() -> None:
    given = parse(["runs/a/model", "data", "--views", "4", "--no-baseline"])
    assert isinstance(given, ModelArguments)
    assert (given.split, given.device, given.views, given.with_baseline) == ("test", "auto", 4, False)
    assert given.out == str(Path("runs/a/evaluation"))


def test_folders_are_named_or_take_the_name_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=2").mkdir()
    given = parse(["--labels", "truth", "--predictions", "ours=a/b", "--predictions", "c/d", "--predictions", "run=2"])
    assert isinstance(given, FolderArguments)
    assert given.predictions == {"ours": "a/b", "d": "c/d", "run=2": "run=2"}
    assert given.out == "evaluation.json"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a model and a dataset, or --labels DIR"),
        (["model"], "no dataset after the model 'model'"),
        (["--labels", "a"], "or --labels DIR --predictions"),
        (["--labels", "a", "--predictions", "b", "--split", "val"], "--split: applies to a model"),
        (["--labels", "a", "--predictions", "b", "--no-baseline"], "--no-baseline: applies to a model"),
        (["model", "data", "--ignore", "i"], "--ignore: applies to label images"),
        (["model", "data", "--split", "tset"], "--split: 'tset' is not known; use one of train, val, test"),
        (["model", "data", "--views", "3"], "--views: 3 is not possible; use one of 1, 2, 4, 8"),
    ],
)
def test_options_of_the_other_form_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(arguments)


def test_label_images_are_scored(tmp_path: Path) -> None:
    for name in ("truth", "found"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), np.pad(np.ones((9, 9), np.uint8), 5))
    line = ["--labels", str(tmp_path / "truth"), "--predictions", f"ours={tmp_path / 'found'}"]
    assert evaluate.main([*line, "--out", str(tmp_path / "scores")]) == 0
    assert json.loads((tmp_path / "scores/evaluation.json").read_text())["metrics"]["SEG"] == 1.0
