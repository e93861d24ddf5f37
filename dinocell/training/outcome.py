"""Outcome of a run: where its results are, how far it came, and whether a signal ended it early."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinocell.core.errors import EXIT_FAILURE, EXIT_STOPPED

StopName = Literal["", "SIGTERM", "SIGUSR2"]


class Stopped(Exception):
    """A signal, whose name is `by`, ended one of several runs; the same command resumes."""

    def __init__(self, by: StopName) -> None:
        super().__init__(by)
        self.by = by


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Result of a stage.

    Attributes:
        folder: folder of the results.
        step: optimizer steps that are done; 0 for stages without any.
        stopped_by: signal after which the run saved and left before its end; "" for a finished run. SIGUSR2 also asks
            for another start.
        failed: images that could not be done.
    """

    folder: Path
    step: int = 0
    stopped_by: StopName = ""
    failed: int = 0

    @property
    def exit_code(self) -> int:
        """0 when everything is done, 75 when the run was stopped and saved, 1 when an image has failed."""
        if self.stopped_by:
            return EXIT_STOPPED
        return EXIT_FAILURE if self.failed else 0

    def finished(self) -> RunOutcome:
        """This outcome, for callers that need the run to be complete.

        Raises:
            Stopped: a signal ended it early.
        """
        if self.stopped_by:
            raise Stopped(self.stopped_by)
        return self
