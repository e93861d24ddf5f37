"""Find the prediction, and the ignore image, that belong to each label image: by name, never by order.

Names are compared without extension, without what tools append to them (`images.listing.LABEL_ENDINGS`), and without
the folders of a prepared dataset (`train`, `test`, `masks`, …). What finds no partner is named.
"""

import difflib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dinocell.core.errors import ConfigError, DataError
from dinocell.images.listing import LABEL_ENDINGS, label_ending, plain_stem

LABEL_EXTENSIONS = (".tif", ".tiff", ".png", ".npy", ".bmp")
_LAYOUT_FOLDERS = frozenset(
    {"train", "val", "test", "images", "masks", "labels", "ignore", "predictions", "labelsTr", "labelsTs"}
)
_HINTS = 20  # missing files for which a likely new name is sought: that compares with every spare file
_NOT_LABELS = frozenset({"images", "ignore"})


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A label image: its dataset ("" where the folder is one dataset), its bare name and its path."""

    dataset: str
    name: str
    path: Path

    @property
    def title(self) -> str:
        """DATASET/NAME, or NAME."""
        return f"{self.dataset}/{self.name}" if self.dataset else self.name


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Partners found for label images, by their title, and one sentence for each file without one."""

    found: dict[str, Path]
    problems: tuple[str, ...]


def bare_stem(path: Path) -> str:
    """File name without extension (also `.ome.tif`) and without the endings of label images."""
    stem = plain_stem(path)
    while (ending := label_ending(stem)) is not None and len(stem) > len(ending):
        stem = stem[: -len(ending)]
    return stem


def list_label_files(folder: Path, role: str = "labels") -> tuple[list[LabelFile], list[str]]:
    """Label images below `folder`, sorted, one for each name, and a sentence for each choice between several.

    Where an image is stored beside its labels (`a.png`, `a_masks.png`), the file with the label ending is used.

    Args:
        folder: searched recursively; hidden files and folders named images or ignore (below it) are passed over.
        role: what the folder is called in messages.

    Raises:
        ConfigError: no such folder.
        DataError: no label image in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{role}: {str(folder)!r} is not a folder")
    by_title: dict[str, list[LabelFile]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        parents = path.relative_to(folder).parts[:-1]
        hidden = any(part.startswith(".") for part in (*parents, path.name))
        if path.suffix.lower() not in LABEL_EXTENSIONS or hidden or _NOT_LABELS & set(parents) or not path.is_file():
            continue
        entry = LabelFile(dataset=_dataset_of(parents), name=bare_stem(path), path=path)
        by_title[entry.title].append(entry)
    if not by_title:
        raise DataError(f"{role}: no label image ({', '.join(LABEL_EXTENSIONS)}) in {str(folder)!r}")
    chosen, notes = [], []
    for title in sorted(by_title):
        best, note = _choose(title, by_title[title])
        chosen.append(best)
        notes += note
    return chosen, notes


def pair(labels: list[LabelFile], folder: Path, role: str, *, every: bool = True) -> Pairing:
    """Find the partner of each of `labels` in `folder`.

    The dataset and the name must agree; where no such file exists, the name alone decides if it is the only one.

    Args:
        labels: label images of the truth.
        folder: where the partners are.
        role: what the folder is called in messages, e.g. the tool's name.
        every: whether a label image without a partner is a problem (predictions), or not (ignore images).

    Raises:
        ConfigError, DataError: as `list_label_files`.
    """
    candidates, problems = list_label_files(folder, role)
    by_title = {candidate.title: candidate for candidate in candidates}
    by_name: dict[str, list[LabelFile]] = defaultdict(list)
    for candidate in candidates:
        by_name[candidate.name].append(candidate)
    occurrences = Counter(label.name for label in labels)
    found: dict[str, Path] = {}
    for label in labels:
        partner = by_title.get(label.title)
        if partner is None and occurrences[label.name] == 1 and len(by_name[label.name]) == 1:
            partner = by_name[label.name][0]
        if partner is not None:
            found[label.title] = partner.path
    used = set(found.values())
    spare = [candidate for candidate in candidates if candidate.path not in used]
    if any(_ending(path) is not None for path in used):
        # Where label images are marked by their names, the others are overlays, flows and the like.
        spare = [candidate for candidate in spare if _ending(candidate.path) is not None]
    missing = [label for label in labels if label.title not in found] if every else []
    for number, label in enumerate(missing):
        if len(rivals := by_name[label.name]) > 1:
            names = ", ".join(_short(rival.path, folder) for rival in rivals[:3])
            problems.append(f"{role}: several files for {label.title} ({names}): name the folder of one of them")
            continue
        hint = _hint(label, spare) if number < _HINTS else ""
        problems.append(f"{role}: no file for {label.title}{hint}")
    problems += [f"{role}: {_short(candidate.path, folder)} has no label image of that name" for candidate in spare]
    return Pairing(found=found, problems=tuple(problems))


def _dataset_of(parents: tuple[str, ...]) -> str:
    """Folders between the root and the file that are not part of a dataset's layout."""
    return str(PurePosixPath(*kept)) if (kept := [part for part in parents if part not in _LAYOUT_FOLDERS]) else ""


def _choose(title: str, files: list[LabelFile]) -> tuple[LabelFile, list[str]]:
    """The label image among files of one name: one with a label ending, else by the order of extensions."""

    def rank(file: LabelFile) -> tuple[int, int, str]:
        ending = _ending(file.path)
        extension = LABEL_EXTENSIONS.index(file.path.suffix.lower())
        return len(LABEL_ENDINGS) if ending is None else LABEL_ENDINGS.index(ending), extension, str(file.path)

    ordered = sorted(files, key=rank)
    marked = [file for file in ordered if _ending(file.path) is not None]
    rivals = [file for file in marked or ordered if not file.path.name.lower().endswith("_seg.npy")]
    if len(rivals) <= 1:  # a _seg.npy beside exported masks contains the same masks
        return ordered[0], []
    rest = ", ".join(file.path.name for file in rivals if file is not ordered[0])
    return ordered[0], [f"{title}: {ordered[0].path.name} is used, not {rest} (several files of that name)"]


def _ending(path: Path) -> str | None:
    """The ending of label images that the file's name has, if any."""
    return label_ending(plain_stem(path))


def _hint(label: LabelFile, spare: list[LabelFile]) -> str:
    """A likely new name of a renamed file."""
    close = difflib.get_close_matches(label.name, [candidate.name for candidate in spare], n=1, cutoff=0.6)
    return f" (renamed? {close[0]!r} has no label image)" if close else ""


def _short(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
