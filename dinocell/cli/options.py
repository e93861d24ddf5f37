"""Command lines made of options alone, read by the type hints of a function (typer)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dinocell.cli.arguments import asks_help
from dinocell.core.errors import ConfigError

T = TypeVar("T")


def call(function: Callable[..., T], name: str, arguments: Sequence[str]) -> T:
    """Call a function with the options of a command line, as its hints say; returns what it returns.

    Prints the help and exits with 0 where the arguments ask for it.

    Raises:
        ConfigError: an argument is missing, unknown or of the wrong type.
    """
    import typer  # here: it takes a tenth of a second, and not every command needs it

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name)(function)
    command: Any = typer.main.get_command(app)
    program = f"dinocell {name}"
    if asks_help(arguments):
        print(command.make_context(program, [], resilient_parsing=True).get_help())
        sys.exit(0)
    try:
        return command.main(list(arguments), prog_name=program, standalone_mode=False)  # type: ignore[no-any-return]
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors, whose class has no public name
            raise
        mistake = error.format_message().rstrip(".")
        raise ConfigError(f"{name}: {mistake}; {program} --help lists the options") from error
