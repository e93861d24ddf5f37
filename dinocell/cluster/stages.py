"""Contract between the commands and the jobs that run them: one `StageSpec` beside each command."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dinocell.core.errors import ConfigError
from dinocell.training.outcome import RunOutcome

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Checked settings of a job.

    Attributes:
        run_folder: folder of the results.
        settings: the resolved settings as YAML.
        one_job: reason why these settings cannot be shared among the tasks of an array; "" where they can.
    """

    run_folder: Path
    settings: str
    one_job: str = ""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Part of an array that one task does: every `count`-th image from `index` on.

    Results written after `since` (seconds since 1970) are the array's own and are not made again.
    """

    index: int
    count: int
    since: float


@dataclass(frozen=True, kw_only=True)
class StageSpec(Generic[S]):
    """A command that can run as a job.

    Its functions are functions of modules that import nothing heavy: a job carries their names to another machine.

    Attributes:
        name: the stage as `slurm/submit.py` takes it.
        parse: settings of a command line, for the command and for the job alike. Raises ConfigError.
        plan: folder and text of the settings; refuses what the job would refuse, before it is submitted.
        run: the work.
        share: one task's share of an array. None for a job of many processes that is one run. An image that cannot
            be read or segmented is part of the result, not a failure of the task.
        merge: joins the results of `count` tasks of an array that began at `since`.
    """

    name: str
    parse: Callable[[Sequence[str]], S]
    plan: Callable[[S], Plan]
    run: Callable[[S], RunOutcome]
    share: Callable[[S, Share], None] | None = None
    merge: Callable[[S, int, float], RunOutcome] | None = None

    def __post_init__(self) -> None:
        assert (self.share is None) == (self.merge is None), f"{self.name}: an array needs both share and merge"

    @property
    def is_array(self) -> bool:
        """Many files, one process each; else one run of many processes, which saves when it is asked to stop."""
        return self.share is not None


Stages = Mapping[str, StageSpec[Any]]


def find_stage(stages: Stages, name: str) -> StageSpec[Any]:
    """The stage of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in stages:
        close = difflib.get_close_matches(name, stages, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"stage {name!r} is not known; use one of {', '.join(stages)}{nearest}")
    return stages[name]


def array_stages(stages: Stages) -> str:
    """Names of the stages that can be an array, for messages."""
    return ", ".join(name for name, stage in stages.items() if stage.is_array)
