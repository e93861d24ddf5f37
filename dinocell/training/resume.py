"""One policy for settings that change when a run is resumed; each field says what may happen to it.

A fixed setting that changed is refused: what is in the checkpoint was learned with another value. A free one counts
from the next step on, and is announced. A neutral one, such as the number of workers, changes nothing that is learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinocell.core import log
from dinocell.core.config import default_values, flatten, leaves, to_dict
from dinocell.core.errors import ConfigError
from dinocell.core.fields import Resume


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that differs from the run's."""

    key: str
    old: Any
    new: Any
    resume: Resume

    def __str__(self) -> str:
        return f"{self.key} {self.old} → {self.new}"


def changed_settings(config: Any, *saved: Mapping[str, Any]) -> tuple[Change, ...]:
    """List the settings of `config` whose value is in none of the saved configs.

    Args:
        saved: nested or flat settings of the run: what it was asked for, and what that became. A setting that the
            run's version did not have yet had its present default.
    """
    defaults = default_values(type(config))
    known = [{**defaults, **flatten(settings)} for settings in saved]
    wanted = flatten(to_dict(config))
    return tuple(
        Change(key=key, old=known[0][key], new=wanted[key], resume=item.metadata["resume"])
        for key, item in leaves(type(config))
        if all(settings[key] != wanted[key] for settings in known)
    )


def check_resumable(
    config: Any,
    *saved: Mapping[str, Any],
    where: str,
    other: str = "another output_dir",
    may_change: Sequence[Resume] = ("free", "neutral"),
) -> tuple[Change, ...]:
    """Refuse changes that a run cannot follow, and announce those that count from now on.

    Args:
        where: beginning of the message, such as `output_dir: 'runs/a' contains a run`.
        other: where a new run could go instead.
        may_change: kinds of settings that the run can follow.

    Returns:
        The changes that count from now on.

    Raises:
        ConfigError: naming each setting with its old and new value.
    """
    changes = changed_settings(config, *saved)
    refused = [change for change in changes if change.resume not in may_change]
    if refused:
        told = ", ".join(f"{change.key}={change.old} (now {change.new})" for change in refused)
        back = "set it back" if len(refused) == 1 else "set them back"
        raise ConfigError(f"{where} with {told}; {back} to resume it, or give {other}")
    free = tuple(change for change in changes if change.resume == "free")
    if free:
        log.warning(f"resuming with other settings, from the next step on: {', '.join(map(str, free))}")
    return free


def refuse_unused(changes: Collection[Change], where: str) -> None:
    """Refuse changes to a run that has no step left: they would be recorded and never used.

    Raises:
        ConfigError: naming each setting with its old and new value.
    """
    if changes:
        told = ", ".join(f"{change.key}={change.old} (now {change.new})" for change in changes)
        raise ConfigError(
            f"{where} with {told}, and no step is left that could use the change; train longer, or set it back"
        )
