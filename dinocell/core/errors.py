"""Errors a user can act on: one line each, saying what, where, which value, and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # asked to stop, saved and left (EX_TEMPFAIL: the same command continues)
EXIT_INTERRUPTED = 130  # the shell's convention for SIGINT


class DinoCellError(Exception):
    """Base class. The message is shown to the user as it is, without a traceback."""

    exit_code: int = EXIT_FAILURE


class ConfigError(DinoCellError):
    """A wrong command line, configuration key or value, or a path the user named that is not there (exit code 2)."""

    exit_code = EXIT_USAGE


class DataError(DinoCellError):
    """An image, mask or dataset that cannot be used (exit code 1)."""


class CheckpointError(DinoCellError):
    """Weights or a checkpoint that cannot be read or do not fit (exit code 1)."""


def run_main(function: Callable[..., Any], *args: Any) -> NoReturn:
    """Run a command's body and exit the process.

    The function's integer return value is the exit code (None counts as 0). A `DinoCellError` becomes one line
    on standard error and its exit code; Ctrl-C becomes 130. Anything else is a bug and keeps its traceback.
    """
    try:
        code = function(*args)
    except DinoCellError as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `dinocell … | head` closes our output: not a failure of ours. Detach stdout so that the exit flush is silent.
        sys.stdout = None  # type: ignore[assignment]
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def first_line(error: BaseException, *, named: bool = False) -> str:
    """Return in one line what an exception says.

    A message of this project is returned whole. Of any other, this is the first line that is not blank, with the next
    one if it ends with a colon, in at most 200 characters, unprintable ones replaced by "?". An exception that says
    nothing is represented by the name of its type.

    Args:
        error: any exception.
        named: put the name of its type in front, for exceptions whose text alone says little, such as KeyError; not
            for messages of this project.
    """
    name = type(error).__name__
    if isinstance(error, DinoCellError):
        return " ".join(str(error).split()) or name
    lines = [line for raw in str(error).splitlines() if (line := " ".join(raw.split()))]
    if not lines:
        return name
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return f"{name}: {text}" if named else text
