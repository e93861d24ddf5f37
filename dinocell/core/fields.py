"""Settings: fields with a description and bounds, and the dataclass that checks them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Hashable, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dinocell.core.errors import ConfigError

T = TypeVar("T")


REQUIRED = "???"
"""Default of a field that the user must set, as OmegaConf marks it."""
Resume = Literal["fixed", "free", "neutral"]


def field(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    unit: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: Sequence[int] = (),
    rising: bool = False,
    resume: Resume = "fixed",
    advanced: bool = False,
    applies_to: Sequence[str] = (),
    factory: Any = None,
) -> Any:
    """Declare a setting: its default, a one-line description, and the limits of its values.

    Give `factory` for a nested config class or a mutable default; give neither and the user must set the field.

    Args:
        unit: shown beside the default.
        at_least, above, at_most, below: bounds of the value, or of every number of a tuple.
        one_of: the numbers to choose from; for text, the type is a `Literal`.
        rising: the numbers of a tuple must not fall.
        resume: when a run is resumed, a fixed setting may not change; a free one may, and counts from then on; a
            neutral one may, and changes nothing that is learned.
        advanced: listed by `--help` after the everyday settings.
        applies_to: the choices that use the setting, such as `kind=flows`; empty = all.
    """
    metadata = {
        "doc": doc,
        "unit": unit,
        "bounds": Bounds(at_least=at_least, above=above, at_most=at_most, below=below),
        "one_of": tuple(one_of),
        "rising": rising,
        "resume": resume,
        "advanced": advanced,
        "applies_to": tuple(applies_to),
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=REQUIRED if default is dataclasses.MISSING else default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of a number; None = no limit on that side."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in dataclasses.astuple(self))

    def allow(self, value: float) -> bool:
        """Report whether the value is within the limits; NaN is within none."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def rule(self) -> str:
        """Return the limits as a message says them: `at least 1`, `between 0 and 1`."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:g} and {self.at_most:g}"
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {limit:g}" for word, limit in words.items() if limit is not None)

    def short(self) -> str:
        """Return the limits as `--help` shows them: `1 …`, `0 … 1`, `> 0`, `0 … < 1`."""
        low = f"> {self.above:g}" if self.above is not None else ""
        low = f"{self.at_least:g}" if self.at_least is not None else low
        high = f"< {self.below:g}" if self.below is not None else ""
        high = f"{self.at_most:g}" if self.at_most is not None else high
        alone = not high if self.above is not None else not low and self.below is not None
        return low or high if alone else f"{low} … {high}".strip()


class SettingError(ConfigError):
    """A value that a setting refuses.

    Attributes:
        key: the setting's dotted name, from the class that refused it; `within` adds the groups around it.
        problem: the value, the rule and the remedy.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem

    def within(self, group: str) -> SettingError:
        """Return the same error for a setting of a group."""
        return SettingError(f"{group}.{self.key}", self.problem)


class Settings:
    """Base of every config dataclass: each value is checked against its field when an instance is made.

    A class with rules between fields extends `__post_init__`, calls this one first, and raises `SettingError`.
    """

    def __post_init__(self) -> None:
        check_bounds(self)

    def check_order(self, low: str, high: str) -> None:
        """Refuse two settings whose first is not below the second."""
        small, large = getattr(self, low), getattr(self, high)
        if not small < large:
            raise SettingError(low, f"must be below {high}={large:g}, got {small:g}")


def check_bounds(settings: Any) -> None:
    """Check every field against its bounds, its order and its choices.

    Raises:
        SettingError: naming the first field that is outside.
    """
    for name, bounds, rising, choices in _checks(typing.cast(Hashable, type(settings))):
        value = getattr(settings, name)
        entries = value if isinstance(value, tuple) else (value,)
        numbers = [n for n in entries if isinstance(n, (int, float)) and not isinstance(n, bool)]
        shown = list(value) if isinstance(value, tuple) else value
        if not all(map(bounds.allow, numbers)):
            every = "every number " if isinstance(value, tuple) else ""
            raise SettingError(name, f"{every}must be {bounds.rule()}, got {shown}")
        if rising and numbers != sorted(numbers):
            raise SettingError(name, f"must rise, got {shown}; write {sorted(numbers)}")
        if choices and value not in choices:
            raise SettingError(name, f"must be one of {', '.join(map(str, choices))}, got {shown}")


@functools.cache
def _checks(cls: Any) -> tuple[tuple[str, Bounds, bool, tuple[Any, ...]], ...]:
    """Return (name, bounds, rising, choices) of the fields that have any."""
    hints = get_type_hints(cls)
    found = []
    for item in dataclasses.fields(cls):
        bounds, rising = item.metadata.get("bounds", Bounds()), item.metadata.get("rising", False)
        literal = get_origin(hints[item.name]) is Literal
        choices = get_args(hints[item.name]) if literal else item.metadata.get("one_of", ())
        if bounds or rising or choices:
            found.append((item.name, bounds, rising, choices))
    return tuple(found)
