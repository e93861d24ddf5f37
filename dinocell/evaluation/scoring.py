"""Score folders of label images, one for each tool, against the truth."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.errors import ConfigError, DataError, DinoCellError
from dinocell.evaluation.pairing import LabelFile, Pairing, bare_stem, list_label_files, pair
from dinocell.evaluation.reading import read_label_image
from dinocell.evaluation.report import write_report
from dinocell.evaluation.results import Evaluation, ImageResult, format_table, summarise, write_csv
from dinocell.metrics import score_image

_PROBLEMS_SHOWN = 20  # on the console; evaluation.json and report.html name all


@dataclass(frozen=True, kw_only=True)
class Target:
    """One label image of the truth and what is known of it.

    Attributes:
        dataset, image: names for tables.
        truth: label image. ignore: nonzero = ignored. picture: the microscope image, shown in the report.
        fully_annotated: False where cells are missing from the truth: masked scores then leave unlabelled pixels out.
        predictions: tool → label image.
    """

    dataset: str
    image: str
    truth: Path
    predictions: Mapping[str, Path]
    ignore: Path | None = None
    picture: Path | None = None
    fully_annotated: bool = True


def score_folders(
    labels_dir: str | Path,
    predictions: Mapping[str, str | Path],
    ignore_dir: str | Path | None = None,
    out: str | Path | None = "evaluation.json",
) -> dict[str, Any]:
    """Score each tool's folder of label images; write evaluation.json, and per_image.csv and report.html beside it.

    Files are paired by name (`dinocell.evaluation.pairing`). A missing prediction, another size or an unreadable file
    is named as a problem and the other images are scored; a tool is averaged over the images it was scored on.

    Args:
        labels_dir: label images of the truth, or several datasets in sub-folders.
        predictions: tool → its folder; the first is the one whose figures stand at the top of evaluation.json.
        ignore_dir: images whose nonzero pixels are left out of the ignore-masked scores.
        out: the JSON file, or a folder for evaluation.json; None writes nothing.

    Returns:
        The content of evaluation.json.

    Raises:
        ConfigError: a folder does not exist, or no predictions are named.
        DataError: a folder has no label image, or a tool has not one image that could be scored.
    """
    if not predictions:
        raise ConfigError("predictions: name at least one folder, as NAME=DIR")
    labels, notes = list_label_files(Path(labels_dir), "labels")
    pairings = {tool: pair(labels, Path(folder), tool) for tool, folder in predictions.items()}
    ignored = Pairing(found={}, problems=())
    if ignore_dir is not None:
        ignored = pair(labels, Path(ignore_dir), "ignore", every=False)
    listed: dict[Path, dict[str, Path]] = {}
    targets = [_target(label, Path(labels_dir), pairings, ignored, listed) for label in labels]
    problems = [*notes, *ignored.problems, *(line for found in pairings.values() for line in found.problems)]
    return score_targets(targets, tuple(predictions), problems, out)


def score_targets(
    targets: Sequence[Target], tools: tuple[str, ...], problems: Sequence[str], out: str | Path | None
) -> dict[str, Any]:
    """Score every prediction of every target, show the table and write the files; see `score_folders`.

    Raises:
        DataError: a tool has not one image that could be scored.
    """
    noted, results = list(problems), list[ImageResult]()
    for target in log.progress(targets, "scoring", total=len(targets)):
        results += _score_target(target, noted)
    for tool in tools:
        if not any(result.tool == tool for result in results):
            reason = next(
                (line for line in noted if line.startswith(f"{tool}:")), "no file of it matches a label image"
            )
            raise DataError(f"{tool}: none of {len(targets)} images could be scored; first problem: {reason}")
    evaluation = Evaluation(
        tools=tools, expected=len(targets), results=tuple(results), problems=tuple(dict.fromkeys(noted))
    )
    summary = summarise(evaluation)
    _show(evaluation, summary)
    if out is not None:
        _write(evaluation, summary, Path(out))
    return summary


def _target(
    label: LabelFile,
    root: Path,
    pairings: Mapping[str, Pairing],
    ignored: Pairing,
    listed: dict[Path, dict[str, Path]],
) -> Target:
    name, fully_annotated = _dataset_info(label, root)
    return Target(
        dataset=name,
        image=label.name,
        truth=label.path,
        predictions={tool: found.found[label.title] for tool, found in pairings.items() if label.title in found.found},
        ignore=ignored.found.get(label.title),
        picture=_picture_of(label, listed),
        fully_annotated=fully_annotated,
    )


def _dataset_info(label: LabelFile, root: Path) -> tuple[str, bool]:
    """Name of the dataset and whether its truth is complete: from dataset.yaml above the file, else the folder."""
    for folder in label.path.resolve().parents[:3]:
        if (folder / "dataset.yaml").is_file():
            from dinocell.datasets.labelled import read_info  # imports torch: only where a dataset describes itself

            info = read_info(folder)
            return label.dataset or info.name, info.fully_annotated
    if label.dataset:
        return label.dataset, True
    generic = {"masks", "labels", "train", "val", "test"}
    return next((part for part in reversed(root.resolve().parts) if part not in generic), "labels"), True


def _picture_of(label: LabelFile, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """The microscope image of a prepared dataset: ../images/STEM.* of masks/STEM.*; `listed` keeps what was listed."""
    folder = label.path.parent.parent / "images"
    if folder not in listed:
        files = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
        listed[folder] = {bare_stem(file): file for file in files if not file.name.startswith(".")}
    return listed[folder].get(label.name)


def _score_target(target: Target, problems: list[str]) -> Iterator[ImageResult]:
    """Yield a result for each prediction that can be scored; say in `problems` why another cannot."""
    if not target.predictions:
        return
    try:
        truth = read_label_image(target.truth)
        ignore, ignoring = _ignored_pixels(target, truth, problems)
    except DinoCellError as error:
        problems.append(f"labels: {error}")
        return
    for tool, path in target.predictions.items():
        try:
            predicted = read_label_image(path)
        except DinoCellError as error:
            problems.append(f"{tool}: {error}")
            continue
        if predicted.shape != truth.shape:
            problems.append(
                f"{tool}: {path.name} is {_size(predicted)} but {target.truth.name} is {_size(truth)}: not scored"
            )
            continue
        raw = score_image(truth, predicted)
        yield ImageResult(
            tool=tool,
            dataset=target.dataset,
            image=target.image,
            raw=raw,
            masked=raw if ignore is None else score_image(truth, predicted, ignore),
            ignoring=ignoring,
            truth=target.truth,
            prediction=path,
            ignore=target.ignore,
            picture=target.picture,
        )


def _ignored_pixels(
    target: Target, truth: NDArray[np.int32], problems: list[str]
) -> tuple[NDArray[np.bool_] | None, str]:
    """Pixels that the masked scores leave out, and what they are."""
    if target.ignore is not None:
        ignore = read_label_image(target.ignore) != 0
        if ignore.shape == truth.shape:
            return ignore, "ignore image"
        problems.append(
            f"ignore: {target.ignore.name} is {_size(ignore)} but {target.truth.name} is {_size(truth)}: not used"
        )
    if not target.fully_annotated:
        return truth == 0, "unlabelled pixels"
    return None, "nothing"


def _size(array: NDArray[Any]) -> str:
    return " × ".join(str(side) for side in array.shape)


def _show(evaluation: Evaluation, summary: dict[str, Any]) -> None:
    log.info(format_table(summary))
    for tool in evaluation.tools:
        scored = len(evaluation.of(tool))
        if scored < evaluation.expected:
            log.warning(f"{tool}: {scored} of {evaluation.expected} images scored")
    for line in evaluation.problems[:_PROBLEMS_SHOWN]:
        log.warning(line)
    if len(evaluation.problems) > _PROBLEMS_SHOWN:
        log.warning(f"{len(evaluation.problems) - _PROBLEMS_SHOWN} more problems: see `problems` in evaluation.json")


def _write(evaluation: Evaluation, summary: dict[str, Any], out: Path) -> None:
    file = out if out.suffix == ".json" else out / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_csv(evaluation, file.parent / "per_image.csv")
    write_report(evaluation, summary, file.parent / "report.html")
    log.info(f"written: {file}, per_image.csv and report.html beside it")
