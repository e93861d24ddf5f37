"""Axes of arrays: names from metadata, otherwise stated rules.

Axis letters are those of OME: T time, Z depth, C channel, Y row, X column, and S for the samples of one
colour pixel (RGB, RGBA). The rules are few, so that a manifest line such as ``rule: unnamed axis of 3 is C``
says exactly what was assumed.
"""

from __future__ import annotations

from dinocell.core.errors import DataError

AXES = "TZCYXS"
MAX_UNNAMED_CHANNELS = 4
MIN_SPATIAL = 16
"""An axis this short beside two long ones is never Y or X."""


def guess_axes(shape: tuple[int, ...]) -> tuple[str, str]:
    """Name the axes of an array that carries no names.

    Rules, in order: two axes are YX; a last axis of 3 or 4 after two long ones is S (RGB, RGBA); a last axis of
    1 or 2 after two long ones is C; any further leading axis is C when it has at most 4 planes, otherwise T
    (and Z for the second of two long leading axes).

    Returns:
        The axis letters and the rule applied, in words.

    Raises:
        DataError: fewer than two axes, or more than five.
    """
    if len(shape) == 2:
        return "YX", "rule: two axes are YX"
    if not 2 <= len(shape) <= 5:
        raise DataError(f"array of shape {shape}: an image has 2 to 5 axes; name them with axes=… if this is one")
    trailing = shape[-1] <= MAX_UNNAMED_CHANNELS and min(shape[-3:-1]) >= MIN_SPATIAL
    if trailing:
        last = "S" if shape[-1] in (3, 4) else "C"
        leading, plane = shape[:-3], "YX" + last
        said = f"rule: last axis of {shape[-1]} is {last}"
    else:
        leading, plane, said = shape[:-2], "YX", ""
    names, rules = name_leading(leading, taken=plane)
    return names + plane, "; ".join(part for part in (said, rules) if part)


def name_leading(lengths: tuple[int, ...], taken: str) -> tuple[str, str]:
    """Letters for unnamed leading axes: C for the last one that is short, T and then Z for long ones."""
    names = ""
    said: list[str] = []
    free = [letter for letter in "TZ" if letter not in taken]
    for position, length in enumerate(lengths):
        short = length <= MAX_UNNAMED_CHANNELS and "C" not in taken + names
        if short and position == len(lengths) - 1:
            letter = "C"
        elif free:
            letter = free.pop(0)
        else:
            raise DataError(f"{len(lengths)} unnamed leading axes of lengths {lengths}: name them with axes=…")
        names += letter
        said.append(f"unnamed axis of {length} is {letter}")
    return names, "rule: " + ", ".join(said) if said else ""


def resolve_unknown(axes: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """Replace letters that mean nothing to us (tifffile's Q, I, M, P …) by the rules of `name_leading`.

    Returns:
        The axis letters, and "metadata" when every letter was known, otherwise the rule.
    """
    unknown = [i for i, letter in enumerate(axes) if letter not in AXES]
    if not unknown:
        return axes, "metadata"
    known = "".join(letter for letter in axes if letter in AXES)
    names, rule = name_leading(tuple(shape[i] for i in unknown), taken=known)
    letters = list(axes)
    for position, name in zip(unknown, names, strict=True):
        letters[position] = name
    return "".join(letters), rule


def check_given(axes: str, shape: tuple[int, ...], where: str) -> str:
    """Validate axes given by the user against an array; a plain 2-D image is YX whatever was given.

    Raises:
        DataError: unknown or repeated letters, no Y and X, or another number of axes than the array has.
    """
    axes = axes.upper()
    if len(shape) == 2:
        return "YX"
    if set(axes) - set(AXES) or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes):
        raise DataError(f"axes={axes}: each of {AXES} at most once, with Y and X")
    if len(axes) != len(shape):
        raise DataError(f"{where}: axes={axes} names {len(axes)} axes, the array has {len(shape)}: {shape}")
    return axes
