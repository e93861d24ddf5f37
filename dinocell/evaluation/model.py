"""Run a model over a split of a prepared data set and score it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dinocell import log
from dinocell.data.io import read_image, to_gray, write_labels
from dinocell.errors import DinoCellError
from dinocell.evaluation.scoring import Target, score_targets

BASELINE = "Otsu + watershed"


class Result(Protocol):
    """What a segmenter gives: labels at the image's size."""

    @property
    def labels(self) -> NDArray[Any]:
        """(H, W) integers, 0 = background."""


class SegmentsImages(Protocol):
    """Anything that segments one image, such as `dinocell.inference.Segmenter`."""

    def segment(self, image: Any) -> Result:
        """Segment a path or an array."""


def evaluate_model(
    model: str | Path | SegmentsImages,
    dataset_root: str | Path,
    *,
    split: Any = "test",
    out: str | Path = "evaluation.json",
    device: str = "auto",
    with_baseline: bool = False,
) -> dict[str, Any]:
    """Segment every image of a split, keep the label images, score them.

    Writes evaluation.json, per_image.csv and report.html as `score_folders`, and predictions/DATASET/STEM_labels.tif
    beside them. An image that cannot be read or segmented is named; the others are scored.

    Args:
        model: a model folder or the name of a packaged model, or an object with `segment(image)`.
        dataset_root: a prepared data set, or a folder of several.
        split: train, val or test.
        out: the JSON file, or a folder to hold evaluation.json.
        device: auto, cpu, cuda, cuda:1, …; unused where `model` is an object.
        with_baseline: also score Otsu's threshold with a watershed, which no trained model should lose to.

    Returns:
        The content of evaluation.json; `predictions` has one entry for the model and one for the baseline.

    Raises:
        ConfigError, DataError, CheckpointError: the data set or the model cannot be used.
    """
    from dinocell.data.labelled import open_dataset

    items = open_dataset(dataset_root, split)
    segmenter, name = _open_model(model, device)
    runs: dict[str, Callable[[Path], NDArray[Any]]] = {name: lambda path: segmenter.segment(path).labels}
    if with_baseline:
        runs[BASELINE] = _baseline
    target_file = Path(out) if Path(out).suffix == ".json" else Path(out) / "evaluation.json"
    problems: list[str] = []
    targets = []
    for item in log.progress(items, f"segmenting {split}", total=len(items)):
        folder = target_file.parent / "predictions"
        found = {}
        for tool, run in runs.items():
            path = folder / _folder_name(tool) / item.dataset.name / f"{item.stem}_labels.tif"
            try:
                _segment_to(run, item.image, path)
            except (DinoCellError, ValueError) as error:
                problems.append(f"{tool}: {item.image.name}: {error}")
            else:
                found[tool] = path
        targets.append(
            Target(
                dataset=item.dataset.name,
                image=item.stem,
                truth=item.mask,
                predictions=found,
                ignore=item.ignore,
                picture=item.image,
                fully_annotated=item.dataset.fully_annotated,
            )
        )
    return score_targets(targets, tuple(runs), problems, target_file)


def _open_model(model: str | Path | SegmentsImages, device: str) -> tuple[SegmentsImages, str]:
    if not isinstance(model, (str, Path)):
        return model, "model"
    from dinocell.inference import load_model

    path = Path(model)
    name = path.resolve().parent.name if path.name == "model" else path.name
    return load_model(model, device=device), name


def _baseline(path: Path) -> NDArray[np.int32]:
    from dinocell.data.baseline import otsu_watershed

    return otsu_watershed(to_gray(read_image(path)))


def _segment_to(run: Callable[[Path], NDArray[Any]], image: Path, path: Path) -> None:
    labels = run(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, labels)


def _folder_name(tool: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in tool)
