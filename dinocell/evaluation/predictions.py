"""Run a model over a split of a prepared dataset and score it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.errors import DinoCellError
from dinocell.evaluation.scoring import Target, score_targets
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import write_labels

if TYPE_CHECKING:
    from dinocell.datasets.labelled import LabelledItem


BASELINE = "Otsu + watershed"


class Result(Protocol):
    """Result of a segmenter: labels at the image's size."""

    @property
    def labels(self) -> NDArray[Any]:
        """(H, W) integers, 0 = background."""


class SegmentsImages(Protocol):
    """Anything that segments one image, such as `dinocell.segmentation.Segmenter`."""

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
    views: int | None = None,
    keep_since: float | None = None,
) -> dict[str, Any]:
    """Segment every image of a split, keep the label images, score them.

    Writes evaluation.json, per_image.csv and report.html as `score_folders`, and predictions/DATASET/STEM_labels.tif
    beside them. An image that cannot be read or segmented is named; the others are scored.

    Args:
        model: a model folder or the name of a packaged model, or an object with `segment(image)`.
        dataset_root: a prepared dataset, or a folder of several.
        split: train, val or test.
        out: the JSON file, or a folder for evaluation.json.
        device: auto, cpu, cuda, cuda:1, …; unused where `model` is an object.
        with_baseline: also score Otsu's threshold with a watershed, which no trained model should lose to.
        views: turned and mirrored views averaged, see `Segmenter`, None = as the model says; unused where `model` is an
            object.
        keep_since: predictions written after this time (seconds since 1970) are scored as they are; see `predict`.

    Returns:
        The content of evaluation.json; `predictions` has one entry for the model and one for the baseline.

    Raises:
        ConfigError, DataError, CheckpointError: the dataset or the model cannot be used.
    """
    target_file = evaluation_file(out)
    task = _Predictions(model, device, views, target_file.parent, with_baseline, keep_since)
    items = _items(dataset_root, split)
    targets = [task.target(item) for item in log.progress(items, f"segmenting {split}", total=len(items))]
    return score_targets(targets, task.tools, task.problems, target_file)


def predict(
    model: str | Path | SegmentsImages,
    dataset_root: str | Path,
    *,
    split: Any = "test",
    out: str | Path = "evaluation.json",
    device: str = "auto",
    with_baseline: bool = False,
    views: int | None = None,
    shard: tuple[int, int] = (0, 1),
    keep_since: float | None = None,
) -> list[str]:
    """Write the label images that `evaluate_model` scores, without scoring: the task of a job array.

    Args:
        model, dataset_root, split, out, device, with_baseline, views: as for `evaluate_model`.
        shard: (index, count): only every count-th image from index on.
        keep_since: predictions written after this time (seconds since 1970) are not made again.

    Returns:
        One sentence for each image that could not be segmented.
    """
    task = _Predictions(model, device, views, evaluation_file(out).parent, with_baseline, keep_since)
    index, count = shard
    items = _items(dataset_root, split)[index::count]
    for item in log.progress(items, f"segmenting {split}, share {index} of {count}", total=len(items)):
        task.target(item)
    return task.problems


def evaluation_file(out: str | Path) -> Path:
    """The JSON file meant by `out`, a file or a folder."""
    return Path(out) if Path(out).suffix == ".json" else Path(out) / "evaluation.json"


def _items(root: str | Path, split: Any) -> list[LabelledItem]:
    from dinocell.datasets.labelled import open_dataset

    return open_dataset(root, split)


class _Predictions:
    """Label images of the model, and of the baseline, in one folder."""

    def __init__(
        self,
        model: str | Path | SegmentsImages,
        device: str,
        views: int | None,
        folder: Path,
        with_baseline: bool,
        keep_since: float | None,
    ) -> None:
        self._model, self._device, self._views = model, device, views
        self._folder, self._keep_since = folder / "predictions", keep_since
        self.tools = (_name(model, views), *((BASELINE,) if with_baseline else ()))
        self.problems: list[str] = []

    def target(self, item: LabelledItem) -> Target:
        """The image with its label images, made now unless they are there and to be kept."""
        found = {}
        for tool in self.tools:
            path = self._folder / _folder_name(tool) / item.dataset.name / f"{item.stem}_labels.tif"
            if not self._kept(path):
                segmenter = self._segmenter()  # outside the try: a model that cannot be used is nobody's single image
                try:
                    write_labels(path, (_baseline if tool == BASELINE else segmenter)(item.image))
                except (DinoCellError, ValueError) as error:
                    self.problems.append(f"{tool}: {item.image.name}: {error}")
                    continue
            found[tool] = path
        return Target(
            dataset=item.dataset.name,
            image=item.stem,
            truth=item.mask,
            predictions=found,
            ignore=item.ignore,
            picture=item.image,
            fully_annotated=item.dataset.fully_annotated,
        )

    def _kept(self, path: Path) -> bool:
        return self._keep_since is not None and path.is_file() and path.stat().st_mtime >= self._keep_since

    def _segmenter(self) -> Callable[[Path], NDArray[Any]]:
        if isinstance(self._model, (str, Path)):  # loaded only when there is something to do
            from dinocell.segmentation import load_model

            self._model = load_model(self._model, device=self._device, views=self._views)
        model = self._model
        return lambda path: model.segment(path).labels


def _name(model: str | Path | SegmentsImages, views: int | None) -> str:
    if not isinstance(model, (str, Path)):
        return "model"
    path = Path(model)
    name = path.resolve().parent.name if path.name == "model" else path.name
    if views is None:
        return name
    return f"{name}, {views} view{'s' if views > 1 else ''}"  # other label images: kept in their own folder


def _baseline(path: Path) -> NDArray[np.int32]:
    from dinocell.evaluation.baseline import otsu_watershed

    return otsu_watershed(to_gray(read_image(path)))


def _folder_name(tool: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in tool)
