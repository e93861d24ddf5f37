"""The command line of curation, shared by `dinocell curate` and data_curation/curate.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from dinocell.cli.recipe import parse_arguments
from dinocell.core.config import describe, load, to_yaml
from dinocell.core.errors import ConfigError, run_main
from dinocell.curation.config import CurateConfig
from dinocell.curation.curate import run

USAGE = """From any pile of microscopy images to crops worth training on.

usage: curate SRC… --out DIR [--size 1024] [--axes ZYX] [--crops-per-image 1] [--workers 0]
              [--config FILE] [--print-config] [--merge] [key=value …]

SRC are image files, folders or glob patterns. DIR gets crops/, manifest.csv, rejected.csv and contact_sheet.html.
Interrupted or killed, the same command goes on where it stopped. On a cluster, job i of n adds shard_index=i
shard_count=n, and one last job adds --merge instead.
"""
OPTIONS = {
    "--out": "out",
    "--size": "size",
    "--axes": "axes",
    "--crops-per-image": "crops_per_image",
    "--workers": "workers",
}


def parse(arguments: Sequence[str]) -> CurateConfig:
    """Config of a command line (see `USAGE`).

    Raises:
        ConfigError: an unknown option or key, a wrong value, or no SRC or --out.
    """
    return _parse(arguments)[0]


def _parse(arguments: Sequence[str]) -> tuple[CurateConfig, bool]:
    sources, rest = _split(arguments)
    path, overrides, print_only = parse_arguments(rest)
    if sources:
        overrides.append(f"sources={json.dumps(sources)}")
    try:
        return load(CurateConfig, path, overrides), print_only
    except ConfigError as error:
        if "'sources' is required" in str(error) or "'out' is required" in str(error):
            raise ConfigError("curate needs images and a folder to write to: curate SRC… --out DIR") from error
        raise


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources, and the rest as the `--config` commands know it."""
    sources: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        name, separator, value = item.partition("=")
        if name in OPTIONS:
            value = value if separator else next(items, "")
            if not value:
                raise ConfigError(f"{name} needs a value after it")
            quoted = json.dumps(value) if name in ("--out", "--axes") else value
            rest.append(f"{OPTIONS[name]}={quoted}")
        elif item == "--merge":
            rest.append("merge=true")
        elif item == "--config":
            rest += [item, *([following] if (following := next(items, None)) else [])]
        elif item.startswith("-") or (separator and name.replace(".", "").replace("_", "").isalpha()):
            rest.append(item)
        else:
            sources.append(item)
    return sources, rest


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit the process."""
    run_main(_main, list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(f"{USAGE}\nEvery key:\n{describe(CurateConfig)}")
        return
    config, print_only = _parse(arguments)
    if print_only:
        print(to_yaml(config), end="")
    else:
        run(config)
