"""The `dinocell` command."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; never a traceback for a user's mistake."""
    from dinocell.cli.app import run_app  # typer takes a while; the package itself stays light

    run_app(argv)
