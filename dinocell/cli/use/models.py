"""`dinocell models`: the models of this installation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from typer import Option

from dinocell.cli.arguments import words
from dinocell.cli.options import call


def _text(as_json: Annotated[bool, Option("--json", help="For programs: one JSON object.")] = False) -> str:
    """The models of this installation: size, network, training data, licence, scores. Nothing is downloaded."""
    from dinocell.models import packaged

    return packaged.models_json() if as_json else packaged.models_text()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    print(call(_text, "models", words(argv)))
    return 0
