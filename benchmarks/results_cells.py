"""The finished parts of the evidence: one JSON file each, with the counts of every image; and label subsets."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.core.errors import ConfigError
from dinocell.core.files import atomic_write_text
from dinocell.datasets.labelled import LabelledItem, open_dataset
from dinocell.labels.files import read_labels
from dinocell.metrics import ImageScores, score_image


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method, trained once, on one test split.

    Attributes:
        part: `peers` (equal seconds), `ablation` (equal steps), or `ablation-NAME` where settings were changed.
        method: what the table calls it. dataset: name of the test data.
        fraction: per cent of the labels it was trained on. seed: of its training. budget: steps or seconds.
        images: stems, in the order of `scores`.
        facts: what else is worth a column (versions, seconds, curves).
    """

    part: str
    method: str
    dataset: str
    fraction: float
    seed: int
    budget: float
    images: list[str]
    scores: list[ImageScores]
    facts: dict[str, Any] = field(default_factory=dict)


def variants(told: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """What `--variant` calls an ablation → what it changes in the recipe; first "" with nothing.

    Raises:
        ConfigError: a name is missing, taken or unfit for a file, or nothing is changed.
    """
    found: dict[str, list[str]] = {"": []}
    for name, *settings in told:
        if not re.fullmatch("[a-z0-9-]+", name) or name in found or not settings:
            shown = " ".join([name, *settings])
            raise ConfigError(
                f"--variant {shown}: give a new name of small letters, digits and hyphens, then key=value settings"
            )
        found[name] = settings
    return found


def ablation_part(variant: str) -> str:
    """What `Result.part` and the files of an ablation are called; `variant` is "" where nothing was changed."""
    return f"ablation-{variant}" if variant else "ablation"


def save(path: Path, results: Sequence[Result]) -> list[Result]:
    """Write the results of one cell; the file appears whole or not at all."""
    atomic_write_text(path, json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return list(results)


def load(path: Path) -> list[Result]:
    """Read what `save` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Result(**{**row, "scores": [ImageScores(**score) for score in row["scores"]]}) for row in rows]


def once(path: Path, make: Callable[[], Sequence[Result]]) -> list[Result]:
    """The cell's results: read where it is finished, else made and kept."""
    if path.is_file():
        return load(path)
    return save(path, make())


def test_items(root: str | Path, limit: int) -> list[LabelledItem]:
    """Images of the test split; with a limit, that many, evenly picked and always the same."""
    items = open_dataset(root, "test")
    if not limit or limit >= len(items):
        return items
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, limit).round()]


def score(items: Iterable[LabelledItem], labels_of: Callable[[LabelledItem], np.ndarray]) -> list[ImageScores]:
    """Counts of each image, over all its pixels."""
    return [score_image(read_labels(item.mask), labels_of(item)) for item in items]


def share(count: int, percent: float) -> int:
    """Images that `percent` of `count` are: rounded, at least 1, at most all."""
    return min(max(round(count * percent / 100), 1), count)


def chosen(items: Sequence[LabelledItem], percent: float, seed: int) -> list[LabelledItem]:
    """The first `share` of the items in random order by seed: a smaller per cent is a part of a larger one."""
    if not items:
        return []
    order = np.random.default_rng((seed, zlib.crc32(items[0].dataset.name.encode()))).permutation(len(items))
    return [items[index] for index in sorted(order[: share(len(items), percent)].tolist())]


def write_subset(roots: Sequence[str | Path], percent: float, seed: int, out: Path) -> list[str]:
    """Data sets of links to `percent` of the train and of the val images; returns their folders.

    Labels of the val split are labels too: both splits are cut.
    """
    folders = []
    for root in roots:
        folder = out / Path(root).resolve().name
        for split in ("train", "val"):
            for item in chosen(open_dataset(root, split), percent, seed):
                files = {"images": item.image, "masks": item.mask} | ({"ignore": item.ignore} if item.ignore else {})
                for kind, file in files.items():
                    link = folder / split / kind / f"{item.stem}{file.suffix}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    if not link.exists():
                        link.symlink_to(file.resolve())
        description = Path(root) / "dataset.yaml"
        if description.is_file() and not (folder / "dataset.yaml").exists():
            (folder / "dataset.yaml").symlink_to(description.resolve())
        folders.append(str(folder))
    return folders
