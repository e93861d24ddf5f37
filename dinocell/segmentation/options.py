"""Options of a segmentation, and their one parser from what a user types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal, TypedDict, get_args

from dinocell.core.errors import ConfigError
from dinocell.core.fields import SettingError, Settings, field
from dinocell.images.depth import Depth, check_depth
from dinocell.images.planes import Channel
from dinocell.objectives import ObjectiveConfig

DiameterWord = Literal["auto", "own", "model"]
DIAMETER_WORDS: tuple[DiameterWord, ...] = get_args(DiameterWord)


class SegmentKwargs(TypedDict, total=False):
    """The fields of `SegmentOptions` as keyword arguments of `segment`, `run` and their like."""

    axes: str | None
    channel: Channel | None
    z: Depth | None
    diameter: float | DiameterWord
    pixel_size: float | None
    threshold: float | None
    min_size: int | None
    max_size_fraction: float | None
    embeddings: bool
    flow_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions(Settings):
    """Options of reading and decoding; None leaves what the file or the model says."""

    axes: str | None = field(None, "axes of the array, letters out of TZCYXS, when the file does not say or errs")
    channel: Channel | None = field(None, "channel to segment, index from 0 or name; default: all, combined to gray")
    z: Depth | None = field(None, "Z stacks as one plane: best, max, mean or a number from 0; default: each depth")
    diameter: float | DiameterWord = field(
        "model",
        "typical cell diameter in the image; rescales to the model's own; auto estimates it, own keeps the image's "
        "scale, model does what is usual for the model (auto for those trained on rescaled images)",
        "px",
        above=0,
    )
    pixel_size: float | None = field(None, "pixel size of the image; overrides the file's", "µm", above=0)
    threshold: float | None = field(None, "probability above which a pixel belongs to a cell")
    min_size: int | None = field(None, "smallest cell kept; default: the model's, at the scale it sees", "px")
    max_size_fraction: float | None = field(None, "largest cell kept, as part of the image")
    embeddings: bool = field(False, "also the mean patch token of each cell; the backbone runs once more")
    flow_error: float | None = field(None, "largest mean squared flow error of a cell; 0 = no check")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("diameter", self.diameter), ("pixel_size", self.pixel_size)):
            if value not in _WORDS[name] and not isinstance(value, Real):
                raise _not_a_number(name, value)
            if isinstance(value, float) and math.isinf(value):
                raise SettingError(name, "must be finite, got inf")
        check_depth(self.z)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> SegmentOptions:
        """Build options from what a user typed, on a command line, in a form or in Python.

        Args:
            values: texts or values by field name; None stands for the default.

        Raises:
            ConfigError: an unknown field, or a value that it does not take.
        """
        return cls().changed(values)

    def changed(self, values: Mapping[str, Any]) -> SegmentOptions:
        """These options with other values in some fields; values and errors as in `parse`."""
        known = {entry.name: entry.default for entry in dataclasses.fields(self)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{unknown[0]}: no such option of segment; known: {', '.join(sorted(known))}")
        typed: dict[str, Any] = {
            name: known[name] if value is None else _typed(name, value) for name, value in values.items()
        }
        return dataclasses.replace(self, **typed)

    def decoding(self, objective: ObjectiveConfig, scale: float = 1.0) -> ObjectiveConfig:
        """The model's objective with the thresholds that the user changed, for an image that it sees at `scale`."""
        names = ("threshold", "min_size", "max_size_fraction", "flow_error")
        changed = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(objective.seen_at(scale), **changed)


_NUMBERS: dict[str, Callable[[str], float]] = {
    "diameter": float,
    "pixel_size": float,
    "threshold": float,
    "min_size": int,
    "max_size_fraction": float,
    "flow_error": float,
}
_WORDS: dict[str, tuple[str | None, ...]] = {"diameter": DIAMETER_WORDS, "pixel_size": (None,)}


def _typed(name: str, value: Any) -> Any:
    """The value of a field that is a number, from its text; others as they are."""
    if not isinstance(value, str) or name not in _NUMBERS:
        return value
    if value in _WORDS.get(name, ()):
        return value
    try:
        return _NUMBERS[name](value)
    except ValueError:
        raise _not_a_number(name, value) from None


def _not_a_number(name: str, value: object) -> ConfigError:
    kind = "a whole number" if _NUMBERS[name] is int else "a number"
    words = f", {', '.join(DIAMETER_WORDS[:-1])} or {DIAMETER_WORDS[-1]}" if name == "diameter" else ""
    return ConfigError(f"{name}: must be {kind}{words}, got {value!r}")
