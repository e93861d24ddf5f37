"""Image files under the paths, folders and patterns that a user names: the one place that decides what an input is."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dinocell.core.errors import ConfigError
from dinocell.images.readers.tiff import TIFFS
from dinocell.images.readers.vendor import BIOIO

PLAIN = (".png", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*PLAIN, *TIFFS, ".npy", ".zarr", *BIOIO)
LABEL_ENDINGS = ("_cp_masks", "_masks", "_labels", "_seg", "_mask", "_label", "_instances_ids")
"""Endings that tools append to an image's stem for its label image; of several, the first one here is taken."""
FIGURE_ENDINGS = ("_overlay", "_outlines")
"""Endings that segmentation appends to an image's stem for its figures (PNG)."""


def plain_stem(file: Path) -> str:
    """File name without extension; `.ome.tif` and `.ome.zarr` count as one extension."""
    return file.stem.removesuffix(".ome")


def label_ending(stem: str) -> str | None:
    """The ending of label images that a stem has, in any case; None for that of an image."""
    return next((ending for ending in LABEL_ENDINGS if stem.lower().endswith(ending)), None)


def list_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List image files under files, folders (recursively) and glob patterns, sorted, each once.

    A file named by the caller is always taken. Inside folders, hidden files, files of unknown type, the insides
    of .zarr folders, folders called masks or ignore, and label images (`LABEL_ENDINGS`) are skipped; so are the figures
    (`FIGURE_ENDINGS`) of images in the same folder, also where a pattern matches them.

    Raises:
        ConfigError: a path or pattern that matches nothing.
    """
    found: set[Path] = set()
    named = {Path(entry).expanduser() for entry in paths}
    for entry in paths:
        for match in expand(entry):
            if match.is_dir() and match.suffix.lower() != ".zarr":
                found.update(_walk(match))
            else:
                found.add(match)
    images = {(file.parent, plain_stem(file)) for file in found}
    return sorted(file for file in found if file in named or not _is_figure(file, images))


def _is_figure(file: Path, images: set[tuple[Path, str]]) -> bool:
    """Report whether segmentation drew this file from one of the images."""
    return file.suffix == ".png" and any(
        file.stem.endswith(ending) and (file.parent, file.stem.removesuffix(ending)) in images
        for ending in FIGURE_ENDINGS
    )


def expand(entry: str | os.PathLike[str]) -> list[Path]:
    """Find the file or folder named, or the folders and image files that a glob pattern matches, sorted.

    Raises:
        ConfigError: nothing of that name, or nothing that the pattern matches.
    """
    path = Path(entry).expanduser()
    if path.exists():
        return [path]
    # pathlib's own glob refuses absolute patterns
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    images = [match for match in matches if match.is_dir() or match.suffix.lower() in SUFFIXES]
    if not images:
        raise ConfigError(f"{path}: no such file, folder or pattern")
    return images


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(".zarr")]
        for name in zarrs:
            if name[0] != "." and label_ending(plain_stem(Path(name))) is None:
                yield Path(root, name)
        folders[:] = sorted(
            name for name in folders if name not in zarrs and name not in ("masks", "ignore") and name[0] != "."
        )
        for name in files:
            file = Path(root, name)
            if name[0] != "." and file.suffix.lower() in SUFFIXES and label_ending(plain_stem(file)) is None:
                yield file
