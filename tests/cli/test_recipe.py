"""Commands that a recipe drives: exit codes, options for settings that are off, and the printed config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dinocell.cli.recipe import recipe_main, recipe_parse
from dinocell.core.errors import run_main
from dinocell.core.fields import field
from dinocell.finetune import FinetuneConfig
from dinocell.pretrain import PretrainConfig
from dinocell.training.outcome import RunOutcome


@dataclass(frozen=True, kw_only=True)
class Recipe:
    root: tuple[str, ...] = field(doc="folders of images")
    seed: int = field(0, "seed")


def test_command_line_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def run(cfg: Recipe) -> RunOutcome:
        return RunOutcome(folder=Path(), stopped_by="SIGTERM" if cfg.seed == 5 else "")

    for arguments, code in (
        (["root=x", "seed=5"], 75),
        (["root=x"], 0),
        (["root=x", "sed=5"], 2),
        (["--verbose"], 2),
        (["--help"], 0),
    ):
        with pytest.raises(SystemExit) as caught:
            run_main(recipe_main, Recipe, "finetune", run, "A recipe.", arguments)
        assert caught.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_a_setting_that_is_off_by_default_is_also_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    def run(cfg: FinetuneConfig) -> RunOutcome:
        raise AssertionError("only the config was asked for")

    line = ["--auto-batch", "--print-config", "data.root=x"]
    assert recipe_main(FinetuneConfig, "finetune", run, "", line) == 0
    assert "auto_batch: true" in capsys.readouterr().out
    assert recipe_parse(PretrainConfig, "ssl", ["--compile", "data.root=x", "output_dir=o"]).compile
