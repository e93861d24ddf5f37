"""How a backbone of stage 1 was trained, as a command: for docs/results.md."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from dinocell.config import load as load_config
from dinocell.config import to_dict
from dinocell.pretrain import PretrainConfig

STAGE1_RECIPES = Path(__file__).resolve().parent.parent / "ssl" / "configs"
MACHINE_KEYS = ("data.root", "output_dir", "data.workers", "log_every", "checkpoint_every", "tensorboard", "device")


def stage1_lines(given: argparse.Namespace) -> list[str]:
    """How the backbones of --start were trained, where stage 1 left its config.yaml beside them."""
    lines = []
    for name, _, file in (text.partition("=") for text in given.start):
        recipe = Path(file).parent / "config.yaml"
        if file and recipe.is_file():
            lines += [f"`{name}` was trained by", "", "```", stage1_command(recipe), "```", ""]
    return lines


def stage1_command(recipe: Path) -> str:
    """`ssl/train.py` with the project's recipe that this one is nearest to, and what differs from it."""
    used = _flat(to_dict(load_config(PretrainConfig, str(recipe), [])))
    best: tuple[str, list[str]] | None = None
    for base in sorted(STAGE1_RECIPES.glob("*.yaml")):
        known = _flat(to_dict(load_config(PretrainConfig, str(base), ["data.root=CROPS", "output_dir=RUN"])))
        changed = [f"{key}={_plain(used[key])}" for key in used if used[key] != known[key] and key not in MACHINE_KEYS]
        if best is None or len(changed) < len(best[1]):
            best = base.name, changed
    assert best is not None
    fixed = ["data.root=CROPS", "output_dir=runs/stage1"]
    command = " ".join([f"python ssl/train.py --config ssl/configs/{best[0]}", *fixed, *best[1]])
    return " \\\n".join(textwrap.wrap(command, 116, subsequent_indent="    ", break_on_hyphens=False))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b` → value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _plain(value: Any) -> str:
    """As it is written on a command line, without this machine's folders."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_plain(entry) for entry in value)}]"
    if isinstance(value, str) and value.startswith("/"):
        return f"DATA/{'/'.join(Path(value).parts[-2:])}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
