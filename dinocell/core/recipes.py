"""Shipped recipes by name: those of the repository, or their copies in an installed package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from dinocell.core.errors import ConfigError

Kind = Literal["data_curation", "ssl", "finetune", "slurm"]
FOLDERS: dict[Kind, str] = {  # as in the repository; setup.py copies them to dinocell/recipes/KIND
    "data_curation": "data_curation/configs",
    "ssl": "ssl/configs",
    "finetune": "finetune/configs",
    "slurm": "slurm/profiles",
}
INSTALLED = Path(__file__).parents[1] / "recipes"
REPOSITORY = Path(__file__).parents[2]


def recipe_folder(kind: Kind) -> Path:
    """Folder of the shipped recipes of one kind."""
    return INSTALLED / kind if INSTALLED.is_dir() else REPOSITORY / FOLDERS[kind]


def recipe_names(kind: Kind) -> list[str]:
    """Names of the shipped recipes of one kind, sorted."""
    return sorted(path.stem for path in recipe_folder(kind).glob("*.yaml"))


def find_recipe(text: str, kind: Kind) -> Path:
    """Path of a recipe that is given by its path or by the name of a shipped one; an existing file wins.

    Raises:
        ConfigError: there is neither; the nearest name is suggested.
    """
    path, names = Path(text).expanduser(), recipe_names(kind)
    if path.is_file():
        return path
    if text in names:
        return recipe_folder(kind) / f"{text}.yaml"
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    if path.suffix in (".yaml", ".yml") and path.parent.is_dir() and any(path.parent.glob("*.y*ml")):
        return path  # a mistyped file of that folder, which the reader of recipes suggests
    nearest = f"did you mean {close[0]!r}?" if close else f"known by name: {', '.join(names) or 'none here'}"
    raise ConfigError(f"recipe {text!r} does not exist, as a file or by name; {nearest}")
