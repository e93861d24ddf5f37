"""`dinocell evaluate` and finetune/evaluate.py: scores of a model on a dataset, or of any tool's label images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from typer import Argument, Option

from dinocell.cli.arguments import named, words
from dinocell.cli.options import call
from dinocell.cluster.stages import Plan, Share, StageSpec
from dinocell.core import log
from dinocell.core.errors import ConfigError
from dinocell.training.outcome import RunOutcome

Split = Literal["train", "val", "test"]
USAGE = "give a model and a dataset, or --labels DIR --predictions NAME=DIR"


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Model, dataset and place of the results: arguments of `evaluate_model` and `predict`, by their names."""

    model: str
    dataset_root: str
    split: Split
    out: str
    device: str
    with_baseline: bool
    views: int | None

    def parameters(self) -> dict[str, Any]:
        """As keyword arguments."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class FolderArguments:
    """Folders of label images and the file of the scores."""

    labels: str
    predictions: dict[str, str]
    ignore: str | None
    out: str


EvaluateArguments = ModelArguments | FolderArguments


def _arguments(
    model: Annotated[str | None, Argument(help="Model folder, or a packaged model's name.", show_default=False)] = None,
    dataset: Annotated[
        str | None,
        Argument(help="Folder with {train,val,test}/{images,masks}, or a folder of several.", show_default=False),
    ] = None,
    split: Annotated[str | None, Option(help="train, val or test; default: test.")] = None,
    views: Annotated[
        int | None,
        Option(
            help="Average over 1, 2, 4 or 8 turned and mirrored views: that many times slower; default: the model's."
        ),
    ] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:N or mps; default: auto.")] = None,
    no_baseline: Annotated[bool, Option("--no-baseline", help="Leave out Otsu + watershed.")] = False,
    labels: Annotated[str | None, Option(help="Without a model: folder of true label images.")] = None,
    predictions: Annotated[
        list[str] | None, Option(help="Without a model: predicted labels, FOLDER or NAME=FOLDER; repeatable.")
    ] = None,
    ignore: Annotated[
        str | None, Option(help="Without a model: folder of ignore images (nonzero = not annotated).")
    ] = None,
    out: Annotated[
        str | None,
        Option(
            help="JSON file or folder of the results; default: `evaluation` beside the model, else evaluation.json."
        ),
    ] = None,
) -> EvaluateArguments:
    """Score a model on a labelled dataset, beside Otsu + watershed, or any tool's label images.

    SEG, DET, MMA, AP and PQ go to evaluation.json, per_image.csv and report.html; a model's label images are kept.
    """
    of_model = {"split": split, "views": views, "device": device, "no_baseline": no_baseline or None}
    of_folders = {"labels": labels, "predictions": predictions or None, "ignore": ignore}
    if model is None:
        _refuse(of_model, "a model and a dataset")
        if labels is None or not predictions:
            raise ConfigError(f"evaluate: {USAGE}")
        return FolderArguments(
            labels=labels,
            predictions={name or Path(path).name or path: path for name, path in map(named, predictions)},
            ignore=ignore,
            out=out or "evaluation.json",
        )
    _refuse(of_folders, "label images without a model")
    if dataset is None:
        raise ConfigError(f"evaluate: no dataset after the model {model!r}; {USAGE}")
    return ModelArguments(
        model=model,
        dataset_root=dataset,
        split=_one_of("--split", split or "test"),
        out=out or str(Path(model).parent / "evaluation"),
        device=device or "auto",
        with_baseline=not no_baseline,
        views=_checked_views(views),
    )


def _refuse(options: dict[str, Any], target: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')}: applies to {target}; {USAGE}")


def _one_of(option: str, value: str) -> Split:
    if value not in get_args(Split):
        raise ConfigError(f"{option}: {value!r} is not known; use one of {', '.join(get_args(Split))}")
    return cast(Split, value)


def _checked_views(views: int | None) -> int | None:
    from dinocell.models.folder import VIEWS

    if views is not None and views not in VIEWS:
        raise ConfigError(f"--views: {views} is not possible; use one of {', '.join(map(str, VIEWS))}")
    return views


def parse(arguments: Sequence[str]) -> EvaluateArguments:
    """Read a command line.

    Raises:
        ConfigError: an argument is missing, unknown, or of the other form of the command.
    """
    return call(_arguments, "evaluate", arguments)


def plan(given: EvaluateArguments) -> Plan:
    """Folder and text of the settings."""
    settings = yaml.safe_dump(dataclasses.asdict(given), sort_keys=False, allow_unicode=True)
    one_job = "" if isinstance(given, ModelArguments) else "label images are scored by one process; leave out --array"
    return Plan(run_folder=_folder(given), settings=settings, one_job=one_job)


def _folder(given: EvaluateArguments) -> Path:
    return Path(given.out).parent if Path(given.out).suffix == ".json" else Path(given.out)


def run(given: EvaluateArguments) -> RunOutcome:
    """Score."""
    return _evaluate(given)


def share(given: EvaluateArguments, part: Share) -> None:
    """Segment one task's share of the images; problems are named in the log."""
    from dinocell.evaluation import predict

    assert isinstance(given, ModelArguments)
    for problem in predict(**given.parameters(), shard=(part.index, part.count), keep_since=part.since):
        log.warning(problem)


def merge(given: EvaluateArguments, count: int, since: float) -> RunOutcome:
    """Score what the tasks have segmented."""
    del count
    return _evaluate(given, keep_since=since)


def _evaluate(given: EvaluateArguments, keep_since: float | None = None) -> RunOutcome:
    from dinocell.evaluation import evaluate_model, score_folders

    if isinstance(given, ModelArguments):
        evaluate_model(**given.parameters(), keep_since=keep_since)
    else:
        score_folders(given.labels, given.predictions, given.ignore, given.out)
    return RunOutcome(folder=_folder(given))


SPEC = StageSpec(name="evaluate", parse=parse, plan=plan, run=run, share=share, merge=merge)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(parse(words(argv))).exit_code
