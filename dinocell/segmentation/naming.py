"""Output names: one stem per input, never the same for two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from dinocell.images.listing import plain_stem


def unique_stems(files: Sequence[Path]) -> list[str]:
    """Give each file a stem: its own where it is the only one, else with extension or parent folders put in.

    `a/x.tif`, `b/x.tif` → `a__x`, `b__x`; `x.tif`, `x.png` → `x_tif`, `x_png`. Upper and lower case count as equal,
    as they do in the file systems of Windows and macOS.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        groups[plain_stem(file).lower()].append(index)
    stems = [plain_stem(file) for file in files]
    taken = {name for name, members in groups.items() if len(members) == 1}
    for members in groups.values():
        if len(members) > 1:
            for index, name in zip(members, _tell_apart([files[index] for index in members], taken), strict=True):
                stems[index] = name
                taken.add(name.lower())
    return stems


def _tell_apart(files: list[Path], taken: set[str]) -> list[str]:
    deepest = max(len(file.absolute().parts) for file in files)
    for folders in range(deepest):
        for with_suffix in (False, True):
            names = [_name(file, folders, with_suffix) for file in files]
            lowered = {name.lower() for name in names}
            if len(lowered) == len(files) and not lowered & taken:
                return names
    return [f"{plain_stem(file)}_{number}" for number, file in enumerate(files, start=1)]


def _name(file: Path, folders: int, with_suffix: bool) -> str:
    parents = [part for part in file.absolute().parent.parts if part != file.anchor][-folders:] if folders else []
    return "__".join([*parents, plain_stem(file)]) + (f"_{file.suffix[1:]}" if with_suffix else "")
