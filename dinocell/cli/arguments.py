"""Command lines of files, options and `key=value` settings: one splitter for every command."""

from __future__ import annotations

import glob
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dinocell.core.config import leaves, load
from dinocell.core.errors import ConfigError
from dinocell.core.recipes import Kind, find_recipe

KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
CONFIG = "--config"
PRINT = "--print-config"


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """Words that a command takes.

    Attributes:
        config: dataclass of the command's settings.
        files: the command takes files or other words beside its settings.
        settings: options with a value that stand for a setting: `--size` → `size`.
        switches: options without a value that stand for a setting: `--merge` → `merge=true`.
        valued: further options with a value.
        recipes: kind of the shipped recipes that `--config` finds by name.
    """

    config: type
    files: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    valued: tuple[str, ...] = (CONFIG,)
    recipes: Kind | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Every option, for the user to choose from."""
        return (*self.settings, *self.switches, *self.valued, PRINT, "--help")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line, split; `settings` are `key=value`, in the order given."""

    files: tuple[str, ...]
    settings: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    print_only: bool

    @property
    def config(self) -> str | None:
        """Path of the recipe given with `--config`."""
        return self.options.get(CONFIG, (None,))[-1]

    def all(self, name: str) -> tuple[str, ...]:
        """Every value given for an option."""
        return self.options.get(name, ())

    def one(self, name: str, default: str) -> str:
        """Last value given for an option."""
        return self.options.get(name, (default,))[-1]

    def number(self, name: str, default: int) -> int:
        """Whole number given for an option.

        Raises:
            ConfigError: another text is given.
        """
        text = self.one(name, str(default))
        if not text.isdigit():
            raise ConfigError(f"{name}: {text!r} is not a whole number; for example {name} {default}")
        return int(text)


def split(arguments: Sequence[str], syntax: Syntax) -> Arguments:
    """Tell the files, options and settings of a command line apart.

    A path that exists is a file, whatever its name; else `word=…` and `word.word=…` are settings, so that a mistyped
    key is reported as such; everything else is a file. After `--` there are only files.

    Raises:
        ConfigError: an unknown option, one without its value, or no recipe of that name.
    """
    files: list[str] = []
    settings: list[str] = []
    options: dict[str, tuple[str, ...]] = {}
    print_only = False
    keys = {name for name, _ in leaves(syntax.config)}
    items = iter(arguments)
    for item in items:
        name, separator, value = item.partition("=")
        if name in syntax.settings or name in syntax.valued:
            value = value if separator else next(items, "")
            if not value:
                raise ConfigError(f"{name} needs a value after it")
            if name == CONFIG and syntax.recipes is not None:
                value = str(find_recipe(value, syntax.recipes))
            if name in syntax.settings:
                settings.append(setting(syntax.config, syntax.settings[name], value))
            else:
                options[name] = (*options.get(name, ()), value)
        elif item == PRINT:
            print_only = True
        elif item in syntax.switches:
            settings.append(syntax.switches[item])
        elif item == "--" and syntax.files:
            files += items
        elif item.startswith("-"):
            known = ", ".join(syntax.options)
            raise ConfigError(f"unknown option {item!r}; options: {known}; settings are key=value")
        elif syntax.files and _is_file(item, keys):
            files.append(item)
        else:
            settings.append(item)
    return Arguments(files=tuple(files), settings=tuple(settings), options=options, print_only=print_only)


def _is_file(text: str, keys: set[str]) -> bool:
    key, separator, _ = text.partition("=")
    if not separator or not KEY.fullmatch(key) or Path(text).expanduser().exists():
        return True
    return key not in keys and glob.has_magic(text) and any(glob.iglob(text, recursive=True))  # noqa: PTH207


def setting(cls: type, key: str, value: Any) -> str:
    """`key=value` that gives a field its value; text stays the text it is, numbers and all."""
    hint: Any = cls
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    is_text = hint is str or str in get_args(hint)
    return f"{key}={value if isinstance(value, str) and not is_text else json.dumps(value)}"


def named(text: str) -> tuple[str, str]:
    """Name and path of `NAME=PATH`; the name is empty where a path is given alone. An existing path is a path."""
    name, separator, path = text.partition("=")
    return (name, path) if separator and not Path(text).expanduser().exists() else ("", text)


def read(cls: type[Any], given: Arguments, *more: str) -> Any:
    """Config of a split command line, with further `key=value` settings after those of the user."""
    return load(cls, given.config, [*given.settings, *more])


def words(argv: Sequence[str] | None) -> list[str]:
    """The given arguments, or those of the process."""
    return list(sys.argv[1:] if argv is None else argv)


def asks_help(arguments: Sequence[str]) -> bool:
    """True if the user asks for help."""
    return "--help" in arguments or "-h" in arguments
