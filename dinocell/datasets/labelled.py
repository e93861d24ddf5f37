"""Labelled datasets on disk: DATASET/{train,val,test}/{images,masks,ignore}/STEM.* with an optional dataset.yaml."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import yaml

from dinocell.core import log
from dinocell.core.errors import ConfigError, DataError
from dinocell.core.files import atomic_write_text
from dinocell.images.listing import SUFFIXES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
CARVED_VAL = 0.1
"""Share of train that becomes val where a dataset has no val split."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Content of dataset.yaml; `fully_annotated` false means unlabelled cells exist outside the masks."""

    name: str
    modality: str = "unknown"
    fully_annotated: bool = True
    licence: str = "unknown"
    source: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class LabelledItem:
    """One image with its label image, and an ignore image (nonzero = ignore) where there is one."""

    stem: str
    image: Path
    mask: Path
    ignore: Path | None
    dataset: DatasetInfo
    split: Split


def open_dataset(root: str | os.PathLike[str], split: Split, *, seed: int = 0) -> list[LabelledItem]:
    """Items of one split, in order of their stems, of a dataset or of every dataset in the sub-folders of `root`.

    A root with images/ and masks/ directly inside is split 80/10/10 by seed; the split is written to splits.json
    there (kept in memory where the folder is read-only) and read back from then on. A missing val split is carved
    out of train (10 %, by seed); train is then the rest.

    Raises:
        ConfigError: no such folder, no dataset in it, or a split that it does not have.
        DataError: an image without a mask, a mask without an image, or two files of one stem.
    """
    folder = Path(root)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    if not folder.is_dir():
        raise ConfigError(f"dataset {str(folder)!r}: no such folder")
    if _is_dataset(folder):
        return _open_one(folder, split, seed)
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and _is_dataset(child))
    if not inside:
        raise ConfigError(f"{str(folder)!r}: neither images/ and masks/ nor train/images and train/masks inside")
    return [item for child in inside for item in _open_one(child, split, seed)]


def read_info(folder: Path) -> DatasetInfo:
    """dataset.yaml of a dataset, or defaults named after the folder.

    Raises:
        DataError: not a mapping, or a key or type that is not known.
    """
    file = folder / "dataset.yaml"
    if not file.is_file():
        return DatasetInfo(name=folder.resolve().name)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a mapping of keys")
    known = DatasetInfo.__dataclass_fields__
    complete = content.get("fully_annotated", True)
    if not isinstance(complete, bool):
        raise DataError(f"{file}: fully_annotated must be true or false, got {complete!r}")
    texts = {key: str(value) for key, value in content.items() if key in known and key != "fully_annotated"}
    return DatasetInfo(**{"name": folder.resolve().name, **texts}, fully_annotated=complete)


def pair_files(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """(stem, image, mask) of two folders by equal stem, sorted; errors as `open_dataset`."""
    left, right = _by_stem(images), _by_stem(masks)
    without_mask, without_image = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    if without_mask:
        raise DataError(
            f"{images}: {len(without_mask)} image(s) without a mask of that stem, first {without_mask[0]!r}"
        )
    if without_image:
        raise DataError(f"{masks}: {len(without_image)} mask(s) without an image, first {without_image[0]!r}")
    return [(stem, left[stem], right[stem]) for stem in sorted(left)]


def _is_dataset(folder: Path) -> bool:
    return _has_pairs(folder) or any(_has_pairs(folder / split) for split in SPLITS)


def _has_pairs(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _open_one(folder: Path, split: Split, seed: int) -> list[LabelledItem]:
    if _has_pairs(folder):
        pairs = pair_files(folder / "images", folder / "masks")
        wanted = set(_splits_of(folder, [stem for stem, _, _ in pairs], seed)[split])
        chosen = [pair for pair in pairs if pair[0] in wanted]
        return _items(folder, folder, chosen, split)
    available = [name for name in SPLITS if _has_pairs(folder / name)]
    if split in available and (split != "train" or "val" in available):
        return _items(folder, folder / split, _pairs_of(folder, split), split)
    if split == "test" or "train" not in available:
        raise ConfigError(f"dataset {str(folder)!r} has no {split} split, only {', '.join(available)}")
    pairs = _pairs_of(folder, "train")
    carved = _carve(len(pairs), seed)
    chosen = [pair for number, pair in enumerate(pairs) if (number in carved) == (split == "val")]
    return _items(folder, folder / "train", chosen, split)


def _pairs_of(folder: Path, split: str) -> list[tuple[str, Path, Path]]:
    return pair_files(folder / split / "images", folder / split / "masks")


def _carve(count: int, seed: int) -> set[int]:
    """Indices of the val items carved out of train: at least one, but never all."""
    size = min(max(round(count * CARVED_VAL), 1), count - 1)
    return set(np.random.default_rng(seed).permutation(count)[: max(size, 0)].tolist())


def make_splits(stems: list[str], seed: int) -> dict[str, list[str]]:
    """80/10/10 train, val, test of sorted stems by seed; from three images on no split is empty."""
    order = [sorted(stems)[i] for i in np.random.default_rng(seed).permutation(len(stems))]
    held = [max(round(len(order) * SPLIT_FRACTIONS[name]), 1 if len(order) >= 3 else 0) for name in ("val", "test")]
    val, test = order[: held[0]], order[held[0] : sum(held)]
    return {"train": sorted(order[sum(held) :]), "val": sorted(val), "test": sorted(test)}


def _splits_of(folder: Path, stems: list[str], seed: int) -> dict[str, list[str]]:
    file = folder / "splits.json"
    if file.is_file():
        return _read_splits(file, stems)
    splits = make_splits(stems, seed)
    try:
        atomic_write_text(file, json.dumps({"seed": seed, **splits}, indent=1) + "\n")
    except OSError:
        log.warning(f"{folder} is read-only: its 80/10/10 split (seed {seed}) is not written to splits.json")
    return splits


def _read_splits(file: Path, stems: list[str]) -> dict[str, list[str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        splits: dict[str, list[str]] = {name: [str(stem) for stem in content.get(name, [])] for name in SPLITS}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: not a splits file: {error}") from error
    listed = [stem for names in splits.values() for stem in names]
    missing = sorted(set(stems) ^ set(listed))
    if missing or len(set(listed)) != len(listed):
        which = missing[0] if missing else "a stem twice"
        raise DataError(f"{file} does not fit the images beside it ({which!r}): delete it to split again")
    return splits


def _items(folder: Path, where: Path, pairs: list[tuple[str, Path, Path]], split: Split) -> list[LabelledItem]:
    info = read_info(folder)
    ignored = _by_stem(where / "ignore") if (where / "ignore").is_dir() else {}
    return [
        LabelledItem(stem=stem, image=image, mask=mask, ignore=ignored.get(stem), dataset=info, split=split)
        for stem, image, mask in pairs
    ]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in SUFFIXES:
            continue
        if file.stem in found:
            raise DataError(f"{folder}: {found[file.stem].name} and {file.name} have the same stem")
        found[file.stem] = file
    return found
