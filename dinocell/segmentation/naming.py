"""Names of results: one stem for each input, never the same for two, and never a result as an input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

PICTURE_ENDINGS = ("_overlay", "_outlines")


def plain_stem(file: Path) -> str:
    """File name without extension; `.ome.tif` and `.ome.zarr` count as one extension."""
    return file.stem.removesuffix(".ome")


def unique_stems(files: Sequence[Path]) -> list[str]:
    """A stem for each file: its own where it is the only one, else with extension or parent folders put in.

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


def without_results(files: Sequence[Path], named: Sequence[Path]) -> list[Path]:
    """The files without overlays and outlines that an earlier run wrote beside its inputs; `named` ones are kept."""
    stems = {(file.parent, plain_stem(file)) for file in files}

    def is_result(file: Path) -> bool:
        return any(
            file.suffix == ".png"
            and file.stem.endswith(ending)
            and (file.parent, file.stem.removesuffix(ending)) in stems
            for ending in PICTURE_ENDINGS
        )

    kept = set(named)
    return [file for file in files if file in kept or not is_result(file)]
