"""submitit, as installed, writes the next start of a job, requeues it once, and exits."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission

from dinocell.cli.stages import STAGES
from dinocell.cluster.job import StageJob
from dinocell.cluster.requeueing import requeue

REFUSAL = subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])


class Environment(JobEnvironment):  # type: ignore[misc]
    """A job of submitit without a scheduler; `_requeue` is what its own environments override."""

    _env = {"job_id": "JOB", "global_rank": "RANK"}  # noqa: RUF012
    refuses = False

    def __init__(self) -> None:
        self.requeued: list[int] = []

    def _requeue(self, countdown: int) -> None:
        if self.refuses:
            raise REFUSAL
        self.requeued.append(countdown)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    for name, value in {"SUBMITIT_FOLDER": str(tmp_path), "JOB": "7", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield Environment()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def delayed(environment: Environment, requeues: int = 2, stage: str = "ssl") -> DelayedSubmission:
    job = StageJob(stage=STAGES[stage], arguments=["seed=1"], directory=".", max_requeues=5, requeues=requeues)
    submission = DelayedSubmission(job)
    submission.set_timeout(60, 5)
    submission.dump(environment.paths.submitted_pickle)
    return DelayedSubmission.load(environment.paths.submitted_pickle)


def next_start(environment: Environment) -> Any:
    return DelayedSubmission.load(environment.paths.submitted_pickle)


def test_the_next_start_is_the_same_job_one_requeue_later(environment: Environment) -> None:
    with pytest.raises(SystemExit):
        requeue(environment, delayed(environment))
    assert len(environment.requeued) == 1
    following = next_start(environment)
    assert following.function.requeues == 3
    assert (following.function.stage, following.function.arguments) == (STAGES["ssl"], ["seed=1"])
    assert (following._timeout_min, following._timeout_countdown) == (60, environment.requeued[0])
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN


def test_a_refusal_is_told_to_the_caller(environment: Environment) -> None:
    environment.refuses = True
    with pytest.raises(subprocess.SubprocessError):
        requeue(environment, delayed(environment))


def test_other_ranks_leave_it_to_rank_0(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    before = delayed(environment)
    requeue(environment, before)
    assert environment.requeued == [] and next_start(environment).function.requeues == before.function.requeues
