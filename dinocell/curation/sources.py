"""Source files of a run, in order, with the names of their crops."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dinocell.core.errors import ConfigError
from dinocell.core.files import is_remote, local_path
from dinocell.curation.config import CurateConfig
from dinocell.images.listing import expand, list_images

UNSAFE = re.compile(r"[^\w.\-/]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image file: where it is, its dataset, and the name its crops start with (unique in a run)."""

    path: str
    dataset: str
    key: str


def find_sources(config: CurateConfig) -> list[Source]:
    """Every source of a run, sorted by path, each once. The output folder is never a source.

    The dataset of a file is the first folder below the SRC it was found in, or that SRC itself. The key is the path
    below the dataset without suffix; where two files would share one, both get a piece of their path's hash.

    Raises:
        ConfigError: a source that does not exist, or nothing to do.
    """
    out = f"{Path(config.out).resolve()}{os.sep}"
    found: dict[Path, tuple[str, str]] = {}
    places: dict[Path, str] = {}
    for root, file in _files(config.sources):
        below = file.relative_to(root)
        place = places.setdefault(root, str(root.resolve()))
        if f"{place}{os.sep}{below}".startswith(out):
            continue
        dataset, name = _names(below, Path(place).name)
        found.setdefault(file, (config.dataset or dataset, name))
    if not found:
        raise ConfigError(f"no images in {', '.join(config.sources)}")
    keys = {file: UNSAFE.sub("_", f"{dataset}/{name}") for file, (dataset, name) in found.items()}
    times = Counter(key.lower() for key in keys.values())
    sources = []
    for file in sorted(found):
        key = keys[file]
        if times[key.lower()] > 1:
            key = f"{key}-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        sources.append(Source(path=str(file), dataset=found[file][0], key=key))
    return sources


def _files(sources: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """(root, file) pairs: the root is the folder the user named, or the folder of a named file."""
    pairs = []
    for text in sources:
        roots = expand(local_path(text) if is_remote(text) else text)
        for root in roots:
            is_folder = root.is_dir() and root.suffix.lower() != ".zarr"
            pairs += [(root if is_folder else root.parent, file) for file in list_images([root])]
    return pairs


def _names(below: Path, root: str) -> tuple[str, str]:
    """Dataset and name of a file from its path below the root, and the root's own name."""
    *folders, _ = below.parts
    return (folders[0], "/".join([*folders[1:], below.stem])) if folders else (root or "root", below.stem)
