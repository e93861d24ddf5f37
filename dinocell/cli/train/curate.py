"""`dinocell curate` and data_curation/curate.py: crops worth training on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell import curation
from dinocell.cli.arguments import Arguments, Syntax, read, setting, split
from dinocell.cli.recipe import run_command
from dinocell.cluster.stages import Plan, Share, StageSpec
from dinocell.core.config import describe, to_yaml
from dinocell.core.errors import ConfigError
from dinocell.curation import CurateConfig
from dinocell.training.outcome import RunOutcome

USAGE = """From any pile of microscopy images to crops worth training on.

usage: curate SRC… --out DIR [--size 1024] [--axes ZYX] [--crops-per-image 1] [--workers 0]
              [--config FILE or NAME] [--print-config] [--merge] [key=value …]

SRC are image files, folders or glob patterns. DIR gets crops/, manifest.csv, rejected.csv and contact_sheet.html.
After an interruption the same command resumes. On a cluster, job i of n adds shard_index=i shard_count=n, and one
last job adds --merge instead.
"""
SYNTAX = Syntax(
    config=CurateConfig,
    settings={
        "--out": "out",
        "--size": "size",
        "--axes": "axes",
        "--crops-per-image": "crops_per_image",
        "--workers": "workers",
    },
    switches={"--merge": "merge=true"},
    recipes="data_curation",
)


def parse(arguments: Sequence[str]) -> CurateConfig:
    """Config of a command line (see `USAGE`).

    Raises:
        ConfigError: an unknown option or key, a wrong value, or no SRC or --out.
    """
    return configure(split(arguments, SYNTAX))


def configure(given: Arguments) -> CurateConfig:
    """Config of a split command line; errors as `parse`."""
    sources = [setting(CurateConfig, "sources", given.files)] if given.files else []
    try:
        config: CurateConfig = read(CurateConfig, given, *sources)
    except ConfigError as error:
        if "'sources' is required" in str(error) or "'out' is required" in str(error):
            raise ConfigError("curate needs images and a folder to write to: curate SRC… --out DIR") from error
        raise
    return config


def plan(config: CurateConfig) -> Plan:
    """Folder and text of the settings."""
    return Plan(run_folder=Path(config.out), settings=to_yaml(config))


def run(config: CurateConfig) -> RunOutcome:
    """Curate."""
    curation.run(config)
    return RunOutcome(folder=Path(config.out))


def share(config: CurateConfig, part: Share) -> None:
    """Extract one task's share of the files; what is in its journal is done."""
    curation.run(curation.shards(config, part.count)[part.index])


def merge(config: CurateConfig, count: int, since: float) -> RunOutcome:
    """Join what the tasks have extracted."""
    del count, since  # the journals say what is done
    curation.merge(config)
    return RunOutcome(folder=Path(config.out))


SPEC = StageSpec(name="curate", parse=parse, plan=plan, run=run, share=share, merge=merge)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        argv,
        help_text=lambda: f"{USAGE}\nEvery key:\n{describe(CurateConfig)}",
        syntax=lambda: SYNTAX,
        configure=configure,
        run=run,
    )
