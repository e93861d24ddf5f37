"""The command line of finetune/evaluate.py, shared with the cluster's jobs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dinocell.core.errors import ConfigError
from dinocell.evaluation.predictions import evaluate_model, predict

DESCRIPTION = """Score a fine-tuned model on a labelled dataset: SEG, DET, MMA, AP and PQ, beside Otsu + watershed.

Writes evaluation.json, per_image.csv, report.html and the predicted label images into --out (default: `evaluation`
beside the model folder) and prints the table."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """What to evaluate, and where the results go: arguments of `evaluate_model` and `predict`, by their names."""

    model: str
    dataset_root: str
    split: str
    out: str
    device: str
    with_baseline: bool
    views: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"evaluate: {message}; --help lists the arguments")


def parse(arguments: Sequence[str] | None = None) -> EvaluateArguments:
    """Read a command line.

    Raises:
        ConfigError: an argument is missing or unknown.
    """
    from dinocell.predict.views import VIEWS  # here: importing torch takes a second

    parser = _Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder, for example runs/finetune/model, or a packaged model's name")
    parser.add_argument("dataset", help="DATASET with {train,val,test}/{images,masks}, or a folder of several")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no-baseline", action="store_true", help="leave out Otsu + watershed")
    parser.add_argument(
        "--views",
        type=int,
        choices=VIEWS,
        help="average the maps of so many turned and mirrored views: slower by as much (default: the model's own)",
    )
    given = parser.parse_args(arguments)
    return EvaluateArguments(
        model=given.model,
        dataset_root=given.dataset,
        split=given.split,
        out=given.out or str(Path(given.model).parent / "evaluation"),
        device=given.device,
        with_baseline=not given.no_baseline,
        views=given.views,
    )


def run(arguments: Sequence[str] | None = None, *, keep_since: float | None = None) -> None:
    """Evaluate as a command line says; `keep_since`: see `evaluate_model`."""
    evaluate_model(**vars(parse(arguments)), keep_since=keep_since)


def run_shard(arguments: Sequence[str], index: int, count: int, keep_since: float) -> list[str]:
    """Segment one task's share of the images; returns what could not be segmented."""
    return predict(**vars(parse(arguments)), shard=(index, count), keep_since=keep_since)
