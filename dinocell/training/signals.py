"""Stop signals of a training run: noticed, and answered after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, get_args

from dinocell.training.outcome import StopName

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # in rising rank: SIGUSR2 also asks to be started again
_NAMES: tuple[StopName, ...] = get_args(StopName)  # "" first, then as SIGNALS


def _rank(number: int) -> int:
    return 1 + SIGNALS.index(signal.Signals(number))


class EarlySignal:
    """Handler of signals that come before the training loop: the next `StopSignal` starts with them.

    For launchers whose own handler drops SIGTERM, as submitit's does.
    """

    def __init__(self) -> None:
        self._received = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, _rank(number))

    def take(self) -> int:
        """Rank of what was received, 0 for nothing; then forgotten."""
        received, self._received = self._received, 0
        return received


class StopSignal:
    """Notices SIGTERM and SIGUSR2 (SLURM's warning through submitit) so that the loop can save and leave.

    Use as a context manager around the training loop and ask `requested()` once per step. A signal only leaves a note:
    it may come while a checkpoint is written, while validating, or several times. What an `EarlySignal` in its place
    has received counts.
    """

    def __init__(self) -> None:
        self._received = 0  # 0 for nothing, else 1 + the place in SIGNALS
        self._previous: dict[int, Any] = {}
        self.name: StopName = ""

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = self._previous[number] = signal.signal(number, self._note)
                if isinstance(previous, EarlySignal):
                    self._received = max(self._received, previous.take())
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, _rank(number))
        if self.name:  # leaving already; a SIGUSR2 after a SIGTERM still asks for another start
            self.name = _NAMES[self._received]

    @property
    def received(self) -> bool:
        """True if this process was asked to stop; no collective call, ranks may differ."""
        return self._received > 0

    def requested(self) -> bool:
        """True if any rank was asked to stop; a collective call, every rank gets the same answer."""
        from dinocell.training import distributed  # here: it imports torch, which takes seconds

        asked = distributed.max_rank(self._received)
        if asked:
            self.name = _NAMES[asked]
        return bool(asked)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
