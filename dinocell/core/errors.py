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
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `dinocell … | head` closes our output: not a failure of ours. Detach stdout so that the exit flush is silent.
        sys.stdout = None  # type: ignore[assignment]
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def first_line(error: BaseException) -> str:
    """What an exception says, or its name, in at most 200 printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])
