"""`dinocell --help` names every command in its panel, and imports none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dinocell import __version__, cli
from dinocell.cli.app import PANELS, help_text

COMMANDS = [name for commands in PANELS.values() for name in commands]


def test_every_file_of_a_panel_is_a_command_of_it(repository: Path) -> None:
    for folder, commands in PANELS.items():
        files = {file.stem for file in (repository / "dinocell/cli" / folder).glob("*.py")} - {"__init__"}
        assert files == set(commands), folder


def test_summaries_fit_on_a_line() -> None:
    for commands in PANELS.values():
        assert all(0 < len(summary) <= 60 for summary in commands.values())
    assert max(map(len, help_text().splitlines())) <= 120


def test_help_is_quick() -> None:
    code = "import sys; from dinocell.cli.app import help_text; help_text(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"'torch'", "'numpy'", "'typer'", "'omegaconf'"} & set(done.stdout.strip("[]\n").split(", "))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert not left.value.code
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 0, "usage: dinocell COMMAND"),
        (["--version"], 0, __version__),
        (["segmnt", "a.png"], 2, "did you mean 'segment'?"),
        (["segment", "a.png"], 2, "segment: Missing option '--out'; dinocell segment --help"),
        (["segment", "a.png", "--out", "o", "--min-size", "big"], 2, "'--min-size'"),
    ],
)
def test_what_is_said(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert int(left.value.code or 0) == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert shown.err.count("\n") == (1 if code else 0)
