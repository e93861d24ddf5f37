"""Body of the commands whose settings are `key=value`: `--help`, `--print-config`, or the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dinocell.cli.arguments import Arguments, Syntax, asks_help, read, split, words
from dinocell.cluster.stages import Plan
from dinocell.core.config import describe, leaves, to_yaml
from dinocell.core.recipes import Kind, recipe_names
from dinocell.training.outcome import RunOutcome

T = TypeVar("T")


def run_command(
    argv: Sequence[str] | None,
    *,
    help_text: Callable[[], str],
    syntax: Callable[[], Syntax],
    configure: Callable[[Arguments], T],
    run: Callable[[T], RunOutcome],
) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: arguments; None for those of the process.
        help_text: text of `--help`.
        syntax: words that the command takes.
        configure: config of a split command line.
        run: the work.
    """
    arguments = words(argv)
    if asks_help(arguments):
        print(help_text())
        return 0
    given = split(arguments, syntax())
    config = configure(given)
    if given.print_only:
        print(to_yaml(config), end="")
        return 0
    return run(config).exit_code


def recipe_syntax(cls: type, recipes: Kind) -> Syntax:
    """Words of a command driven by a recipe alone; a setting that is off by default is also an option.

    `--auto-batch` stands for `train.auto_batch=true`.
    """
    off = [name for name, item in leaves(cls) if item.default is False]
    switches = {f"--{name.rsplit('.', 1)[-1].replace('_', '-')}": f"{name}=true" for name in off}
    return Syntax(config=cls, files=False, switches=switches, recipes=recipes)


def recipe_main(
    cls: type[T],
    recipes: Kind,
    run: Callable[[T], RunOutcome],
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run the command line of a stage that a recipe drives: `--config FILE`, `--print-config`, `key=value …`."""
    usage = "usage: [--config FILE or NAME] [--print-config] [key=value …]"
    known = f"Recipes known by name: {', '.join(recipe_names(recipes))}"
    return run_command(
        argv,
        help_text=lambda: f"{description.strip()}\n\n{usage}\n\n{known}\n\nEvery key:\n{describe(cls)}",
        syntax=lambda: recipe_syntax(cls, recipes),
        configure=lambda given: read(cls, given),
        run=run,
    )


def recipe_parse(cls: type[T], recipes: Kind, arguments: Sequence[str]) -> T:
    """Config of a command line as `recipe_main` takes it.

    Raises:
        ConfigError: an unknown option or key, or a wrong value.
    """
    return read(cls, split(arguments, recipe_syntax(cls, recipes)))


def recipe_plan(config: Any) -> Plan:
    """Plan of a stage that a recipe drives."""
    return Plan(run_folder=Path(config.output_dir), settings=to_yaml(config))
