"""The stages a job can run: check a command line before it is submitted, run it inside the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from dinocell.cli.recipe import parse_arguments, run_stage
from dinocell.core import config, log
from dinocell.core.errors import ConfigError

Stage = Literal["ssl", "finetune", "curate", "segment", "evaluate"]
STAGES: tuple[str, ...] = get_args(Stage)
ARRAY_STAGES = ("curate", "segment", "evaluate")  # many files, one process each; the others are one job of many ranks


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
            from dinocell.cli.train import curate

            parsed = curate.parse(arguments)
            return Plan(run_folder=Path(parsed.out), settings=config.to_yaml(parsed))
        case "segment":
            return _segment_plan(arguments)
        case "evaluate":
            from dinocell.cli.use import evaluate_model

            given = evaluate_model.parse(arguments)
            return Plan(run_folder=evaluation_folder(given.out), settings=_settings(dataclasses.asdict(given)))


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
            from dinocell.cli.train import curate

            curation.run(curate.parse(arguments))
            return 0
        case "segment":
            from dinocell import segmentation

            return segmentation.run(**segment_parameters(arguments)).exit_code
        case "evaluate":
            from dinocell.cli.use import evaluate_model

            evaluate_model.run(arguments)
            return 0


def run_share(stage: Stage, arguments: list[str], index: int, count: int, since: float) -> None:
    """Do one task's share of an array. Results of this array (written after `since`) are not made again.

    An image that cannot be read or segmented is part of the result, not a failure of its task.
    """
    match stage:
        case "curate":
            from dinocell import curation
            from dinocell.cli.train import curate

            curation.run(curation.shards(curate.parse(arguments), count)[index])
        case "segment":
            from dinocell import segmentation

            share = segmentation.Shard(index=index, count=count, since=since)
            segmentation.run(**segment_parameters(arguments), shard=share)
        case "evaluate":
            from dinocell.cli.use import evaluate_model

            for problem in evaluate_model.run_shard(arguments, index, count, since):
                log.warning(problem)
        case _:
            raise ConfigError(f"stage {stage!r} is one job of many processes, not an array")


def merge(stage: Stage, arguments: list[str], count: int, since: float) -> int:
    """Join the results of an array's tasks; the exit code is 1 when an image has failed."""
    match stage:
        case "curate":
            from dinocell import curation
            from dinocell.cli.train import curate

            curation.merge(curate.parse(arguments))
            return 0
        case "segment":
            from dinocell import segmentation

            return 1 if segmentation.merge_shards(Path(segment_parameters(arguments)["out"]), count) else 0
        case "evaluate":
            from dinocell.cli.use import evaluate_model

            evaluate_model.run(arguments, keep_since=since)
            return 0
        case _:
            raise ConfigError(f"stage {stage!r} is one job of many processes, not an array")


def segment_parameters(arguments: list[str]) -> dict[str, Any]:
    """The arguments of `dinocell segment` as those of `inference.run`.

    Raises:
        ConfigError: an argument is missing, unknown or of the wrong type.
    """
    from typer.main import get_command

    from dinocell.cli.app import app

    command: Any = get_command(app)
    try:
        parameters = dict(command.commands["segment"].make_context("segment", list(arguments)).params)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise ConfigError(f"segment: {error.format_message()}") from error
    return parameters


def evaluation_folder(out: str) -> Path:
    """The folder of an evaluation's results."""
    return Path(out).parent if Path(out).suffix == ".json" else Path(out)


def _segment_plan(arguments: list[str]) -> Plan:
    from dinocell.models.packaged import find_model
    from dinocell.segmentation import image_files
    from dinocell.segmentation.outputs.save import check_formats

    parameters = segment_parameters(arguments)
    check_formats(parameters["save"])
    find_model(parameters["model"])
    files = image_files(parameters["inputs"])
    log.info(f"{len(files)} images")
    return Plan(run_folder=Path(parameters["out"]), settings=_settings(parameters))


def _settings(values: dict[str, Any]) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _recipe_plan(cls: type, arguments: list[str]) -> Plan:
    path, overrides, _ = parse_arguments(arguments)
    parsed: Any = config.load(cls, path, overrides)
    return Plan(run_folder=Path(parsed.output_dir), settings=config.to_yaml(parsed))


def _run_recipe(cls: type, run: Callable[[Any], Any], arguments: list[str]) -> int:
    path, overrides, _ = parse_arguments(arguments)
    return run_stage(run, config.load(cls, path, overrides))
