"""A run's outcome as an exit code, and as a condition for what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinocell.training.outcome import RunOutcome, Stopped


def test_exit_codes() -> None:
    assert RunOutcome(folder=Path("a"), step=3).exit_code == 0
    assert RunOutcome(folder=Path("a"), failed=2).exit_code == 1
    assert RunOutcome(folder=Path("a"), failed=2, stopped_by="SIGTERM").exit_code == 75


def test_only_a_finished_run_is_continued_with() -> None:
    done = RunOutcome(folder=Path("a"), step=3)
    assert done.finished() is done
    with pytest.raises(Stopped) as caught:
        RunOutcome(folder=Path("a"), stopped_by="SIGUSR2").finished()
    assert caught.value.by == "SIGUSR2"
