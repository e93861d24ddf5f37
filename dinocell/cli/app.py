"""The `dinocell` command: its subcommands in panels. A subcommand is imported when it is called, so help is quick."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from dinocell import __version__
from dinocell.core.errors import ConfigError, run_main

HELP = """Turn unlabelled microscopy and a few labelled images into a cell-segmentation model, and segment with it.

usage: dinocell COMMAND …        dinocell COMMAND --help        dinocell --version
"""
PANELS: dict[str, dict[str, str]] = {  # folder → command, in the order of work → summary of at most 60 characters
    "use": {
        "segment": "Segment the cells of any image",
        "evaluate": "Score a model, or any tool's label images",
        "models": "List the models of this installation",
        "demo": "Run the whole pipeline on an embedded sample",
    },
    "train": {
        "curate": "Choose training crops from a pile of images",
        "prepare": "Convert a published labelled dataset to our layout",
        "inspect": "Check a labelled dataset before training",
        "pretrain": "Stage 1: train a backbone on unlabelled crops",
        "export": "Write a backbone or a model for other programs",
        "finetune": "Stage 2: train on labelled images",
        "adapt": "Adapt a model to unlabelled images of your microscope",
    },
    "more": {
        "pca": "Draw the features of backbones as colours",
    },
}


def run_app(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process; never a traceback for a user's mistake."""
    run_main(_run, list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        print(f"dinocell {__version__}")
        return 0
    return int(importlib.import_module(_module(arguments[0])).main(arguments[1:]))


def _module(command: str) -> str:
    folder = next((folder for folder, commands in PANELS.items() if command in commands), None)
    if folder is None:
        known = [name for commands in PANELS.values() for name in commands]
        close = difflib.get_close_matches(command, known, n=1)
        nearest = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
        raise ConfigError(f"dinocell has no command {command!r}; {nearest}")
    return f"dinocell.cli.{folder}.{command}"


def help_text() -> str:
    """Text of `dinocell --help`: every command with its summary, by panels."""
    lines = [HELP]
    for folder, commands in PANELS.items():
        lines += [f"{folder.capitalize()}:", *(f"  {name:<10}{summary}" for name, summary in commands.items()), ""]
    return "\n".join(lines).rstrip()
