"""A job put back into the queue, by the part of submitit that does so for its own signals."""

from __future__ import annotations

import signal
from typing import Any


def requeue(environment: Any, delayed: Any) -> None:
    """Write the job's next start, put the job back into the queue, and exit; on ranks other than 0 do nothing.

    SIGTERM and SIGUSR2 are ignored from here on: none may disturb the writing.

    Args:
        environment: submitit's `JobEnvironment` of this process.
        delayed: submitit's `DelayedSubmission` of the job, as read from `environment.paths.submitted_pickle`. Its
            function's `checkpoint()` gives the next start.

    Raises:
        OSError, subprocess.SubprocessError: the scheduler refuses or cannot be reached.
        SystemExit: the job has been requeued.
    """
    from submitit.core.job_environment import SignalHandler

    ignore_signals()
    SignalHandler(environment, environment.paths, delayed).checkpoint_and_try_requeue(signal.SIGUSR2)


def ignore_signals() -> None:
    """Ignore the signals that stop a job."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
