"""The stages a job can run: check a command line before it is submitted, run it inside the job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dinocell import config
from dinocell.errors import ConfigError

Stage = Literal["ssl", "finetune", "curate"]
STAGES: tuple[str, ...] = get_args(Stage)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a checked command line will do: where its results go, and its resolved settings as YAML."""

    run_folder: Path
    settings: str


def known_stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STAGES:
        raise ConfigError(f"stage {name!r} is not known; use one of {', '.join(STAGES)}")
    return name  # type: ignore[return-value]


def plan(stage: Stage, arguments: list[str]) -> Plan:
    """Refuse a mistyped key now, not in the job's log two days later.

    Raises:
        ConfigError: the stage would refuse this command line.
    """
    match stage:
        case "ssl":
            from dinocell.pretrain import PretrainConfig

            return _recipe_plan(PretrainConfig, arguments)
        case "finetune":
            from dinocell.finetune import FinetuneConfig

            return _recipe_plan(FinetuneConfig, arguments)
        case "curate":
            from dinocell import curation

            parsed = curation.parse(arguments)
            return Plan(run_folder=Path(parsed.out), settings=config.to_yaml(parsed))


def run(stage: Stage, arguments: list[str]) -> int:
    """Run a stage's command line in this process and return its exit code."""
    match stage:
        case "ssl":
            from dinocell import pretrain

            return _run_recipe(pretrain.PretrainConfig, pretrain.run, arguments)
        case "finetune":
            from dinocell import finetune

            return _run_recipe(finetune.FinetuneConfig, finetune.run, arguments)
        case "curate":
            from dinocell import curation

            curation.run(curation.parse(arguments))
            return 0


def _recipe_plan(cls: type, arguments: list[str]) -> Plan:
    path, overrides, _ = config.parse_arguments(arguments)
    parsed: Any = config.load(cls, path, overrides)
    return Plan(run_folder=Path(parsed.output_dir), settings=config.to_yaml(parsed))


def _run_recipe(cls: type, run: Callable[[Any], Any], arguments: list[str]) -> int:
    path, overrides, _ = config.parse_arguments(arguments)
    return config.run_stage(run, config.load(cls, path, overrides))
