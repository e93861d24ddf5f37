"""Command line of every stage that is driven by a recipe: `--config`, `key=value`, `--print-config`, `--help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinocell.core.config import T, describe, leaves, load, to_yaml
from dinocell.core.errors import ConfigError, run_main


def recipe_main(cls: type[T], run: Callable[[T], Any], description: str, argv: Sequence[str] | None = None) -> None:
    """The command line of every `--config` command; exits the process.

    `--config FILE`, `key=value …`, `--print-config` (the resolved config as YAML), `--help` (every field).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    run_main(lambda: _main(cls, run, description, arguments))


def _main(cls: type[T], run: Callable[[T], Any], description: str, arguments: list[str]) -> Any:
    if "--help" in arguments or "-h" in arguments:
        print(help_text(cls, description))
        return 0
    path, overrides, print_only = parse_arguments(arguments, switches(cls))
    config = load(cls, path, overrides)
    if print_only:
        print(to_yaml(config), end="")
        return 0
    return run_stage(run, config)


def run_stage(run: Callable[[T], Any], config: T) -> int:
    """Run a stage and return its exit code: its own integer, or 75 when a signal made it save and leave early."""
    from dinocell.training.signals import (  # imports torch, which --help and --print-config do not need
        EXIT_STOPPED,
        forget_stop,
        stopped_by,
    )

    forget_stop()
    code = run(config)
    if stopped_by():
        return EXIT_STOPPED
    return code if isinstance(code, int) else 0


def help_text(cls: type, description: str) -> str:
    """What `--help` prints."""
    usage = "usage: [--config FILE] [--print-config] [key=value …]"
    return f"{description.strip()}\n\n{usage}\n\nEvery key:\n{describe(cls)}"


def switches(cls: type) -> dict[str, str]:
    """Options for the settings that are off by default: `--auto-batch` → `train.auto_batch=true`."""
    off = [name for name, item in leaves(cls) if item.default is False]
    return {f"--{name.rsplit('.', 1)[-1].replace('_', '-')}": f"{name}=true" for name in off}


def parse_arguments(
    arguments: Sequence[str], options: Mapping[str, str] | None = None
) -> tuple[str | None, list[str], bool]:
    """Split a command line into (recipe path, overrides, whether only to print the config).

    Args:
        options: option → the override it stands for.
    """
    path: str | None = None
    overrides: list[str] = []
    print_only = False
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            path = next(rest, None)
            if path is None:
                raise ConfigError("--config needs the path of a YAML recipe after it")
        elif argument.startswith("--config="):
            path = argument.partition("=")[2]
        elif argument == "--print-config":
            print_only = True
        elif options and argument in options:
            overrides.append(options[argument])
        elif argument.startswith("-"):
            raise ConfigError(
                f"unknown option {argument!r}; options: --config FILE, --print-config, --help; settings are key=value"
            )
        else:
            overrides.append(argument)
    return path, overrides, print_only
