"""The command of a finished training: the project's recipe that it is nearest to, and what differs from it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from dinocell.core.config import flatten, load, to_dict

ROOT = Path(__file__).resolve().parent.parent
MACHINE_KEYS = ("data.root", "output_dir", "data.workers", "data.cache_gb", "log_every", "checkpoint_every")
MACHINE_KEYS += ("train.log_every", "train.checkpoint_every", "tensorboard", "device", "precision")


def recipe_command(script: str, kind: type[Any], config: Path, fixed: list[str]) -> str:
    """A command line of several lines that trains as `config` says, without this machine's folders.

    Args:
        script: as it is called from the root, e.g. `ssl/train.py`; its recipes are in `configs` beside it.
        kind: class of the configuration. config: the resolved config.yaml that the training left.
        fixed: `key=value` of the data and the output folder.
    """
    used = flatten(to_dict(load(kind, str(config), [])))
    best: tuple[Path, list[str]] | None = None
    for recipe in sorted((ROOT / script).parent.glob("configs/*.yaml")):
        known = flatten(to_dict(load(kind, str(recipe), fixed)))
        differ = [key for key in used if used[key] != known.get(key) and key not in MACHINE_KEYS]
        changed = [f"{key}={_named(key, used[key])}" for key in differ]
        if best is None or len(changed) < len(best[1]):
            best = recipe, changed
    assert best is not None, f"no recipe beside {script}"
    name = best[0].relative_to(ROOT).as_posix()
    command = " ".join([f"python {script} --config {name}", *fixed, *best[1]])
    return " \\\n".join(
        textwrap.wrap(command, 116, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    )


def _named(key: str, value: Any) -> str:
    """A start or weights by name alone (a run's model with its run), anything else as `_plain`."""
    if key == "start" and Path(value).name == "model":
        return Path(*Path(value).parts[-2:]).as_posix()
    return Path(value).name if value and key in ("start", "weights", "backbone.weights") else _plain(value)


def _plain(value: Any) -> str:
    """As it is written on a command line, without this machine's folders."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_plain(entry) for entry in value)}]"
    if isinstance(value, str) and Path(value).is_absolute():
        return f"DATA/{'/'.join(Path(value).parts[-2:])}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
