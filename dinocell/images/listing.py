"""Image files below the paths, folders and patterns that a user names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dinocell.core.errors import ConfigError
from dinocell.images.readers.tiff import TIFFS
from dinocell.images.readers.vendor import BIOIO

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*PICTURES, *TIFFS, ".npy", ".zarr", *BIOIO)
MASK_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_cp_masks", "_seg", "_instances_ids")


def list_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files under files, folders (recursively) and glob patterns, sorted, each once.

    A file named by the caller is always taken. Inside folders, hidden files, files of unknown type, the insides
    of .zarr folders, folders called masks or ignore, and stems that end like a mask's (`MASK_ENDINGS`) are skipped.

    Raises:
        ConfigError: a path or pattern that matches nothing.
    """
    found: set[Path] = set()
    for entry in paths:
        for match in expand(entry):
            if match.is_dir() and match.suffix.lower() != ".zarr":
                found.update(_walk(match))
            else:
                found.add(match)
    return sorted(found)


def expand(entry: str | os.PathLike[str]) -> list[Path]:
    """The file or folder named, or the folders and image files that a glob pattern matches, sorted.

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
            stem = name[: -len(".zarr")].lower().removesuffix(".ome")
            if name[0] != "." and not stem.endswith(MASK_ENDINGS):
                yield Path(root, name)
        folders[:] = sorted(
            name for name in folders if name not in zarrs and name not in ("masks", "ignore") and name[0] != "."
        )
        for name in files:
            file = Path(root, name)
            if name[0] != "." and file.suffix.lower() in SUFFIXES and not file.stem.lower().endswith(MASK_ENDINGS):
                yield file
