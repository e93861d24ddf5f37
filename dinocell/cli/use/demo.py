"""`dinocell demo`: the whole pipeline on an embedded sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Option

from dinocell.cli.arguments import words
from dinocell.cli.options import call
from dinocell.training.outcome import RunOutcome


def _run(
    out: Annotated[Path, Option(help="Folder for the sample, the runs and the report.")] = Path("demo"),
    seed: Annotated[int, Option(help="Seed of the sample and of both trainings.")] = 0,
) -> RunOutcome:
    """The whole pipeline on an embedded sample: curate, pretrain, export, finetune, evaluate, segment, report."""
    from dinocell.demo.pipeline import run

    return run(out, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return call(_run, "demo", words(argv)).exit_code
