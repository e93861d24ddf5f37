"""Stop signals of a training run: noticed, and answered after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from dinocell.training import distributed

EXIT_STOPPED = 75  # a run that was asked to stop, saved and left (EX_TEMPFAIL: run it again to continue)


_stopped_by = ""


def stopped_by() -> str:
    """The signal that ended this process's last training loop early (`SIGTERM` or `SIGUSR2`), or ""."""
    return _stopped_by


def forget_stop() -> None:
    """Start a new run: what stopped an earlier one in this process no longer counts."""
    global _stopped_by
    _stopped_by = ""


_early = 0


def note_early_term() -> None:
    """Remember a SIGTERM that comes before the training loop: the next `StopSignal` starts with it.

    For launchers whose own handler drops SIGTERM, as submitit's does.
    """
    global _early
    _early = 0

    def note(number: int, frame: FrameType | None) -> None:
        global _early
        _early = 1 + StopSignal.SIGNALS.index(signal.Signals(number))

    signal.signal(signal.SIGTERM, note)


class StopSignal:
    """Notices SIGTERM and SIGUSR2 (SLURM's warning through submitit) so that the loop can save and leave.

    Use as a context manager around the training loop and ask `requested()` once a step. A signal only leaves a note:
    it may come while a checkpoint is written, while validating, or several times.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # in rising rank: SIGUSR2 also asks to be started again

    def __init__(self) -> None:
        self._received = 0  # 0 for nothing, else 1 + the place in SIGNALS
        self._previous: dict[int, Any] = {}
        self.name = ""

    def __enter__(self) -> StopSignal:
        global _early
        forget_stop()
        self._received, _early = max(self._received, _early), 0
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, 1 + self.SIGNALS.index(signal.Signals(number)))
        if _stopped_by:  # leaving already; a SIGUSR2 after a SIGTERM still asks for another start
            self._settle(self._received)

    @property
    def received(self) -> bool:
        """Whether this process was asked to stop; no collective call, ranks may differ."""
        return self._received > 0

    def requested(self) -> bool:
        """Whether any rank was asked to stop; a collective call, every rank gets the same answer."""
        asked = distributed.max_rank(self._received)
        if asked:
            self._settle(asked)
        return bool(asked)

    def _settle(self, asked: int) -> None:
        global _stopped_by
        _stopped_by = self.name = self.SIGNALS[asked - 1].name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
