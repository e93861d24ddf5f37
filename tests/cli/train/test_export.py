"""An option of one target is refused by the others, before anything is read."""

from __future__ import annotations

import pytest

from dinocell.cli.train.export import parse
from dinocell.core.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--to", "tflite"],
            "--to: 'tflite' is not known; use one of backbone, dinov2, hf, timm, half, onnx, bioimage",
        ),
        (["--batch", "4"], "--batch: applies to --to onnx only, not to backbone"),
        (["--to", "onnx", "--author", "A"], "--author: applies to --to bioimage only, not to onnx"),
        (["--to", "half", "--image", "a.png", "--out", "o"], "--image: applies to --to bioimage only"),
        (["--to", "half"], "--out: --to half needs a folder"),
    ],
)
def test_options_that_do_not_apply_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(["runs/a", *arguments])


def test_every_option_of_a_target_is_taken() -> None:
    assert parse(["m", "--to", "onnx", "--batch", "1"]).batch == 1
    given = parse(["m", "--to", "bioimage", "--author", "A", "--author", "B", "--licence", "X", "--name", "n"])
    assert (given.author, given.licence, given.name) == (("A", "B"), "X", "n")
