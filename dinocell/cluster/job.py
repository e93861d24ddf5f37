"""The picklable job that runs one stage on a cluster, saves, requeues and continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinocell.cluster import records
from dinocell.cluster.array import Array
from dinocell.cluster.stages import Share, StageSpec
from dinocell.core import log
from dinocell.core.errors import DinoCellError

EXIT_STOPPED = 75  # as dinocell.training.signals.EXIT_STOPPED, which would import torch here
LOCAL_STARTS = 6  # submitit's local executor starts a job no more often than this


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """What a job runs: a stage with its arguments. Pickled by submitit, called once in every process of the job.

    With an `array` it does the share `index` of it, or with `index` None the merge.
    """

    stage: StageSpec[Any]
    arguments: list[str]
    directory: str
    max_requeues: int = 20
    requeues: int = 0
    array: Array | None = None
    index: int | None = None

    def __call__(self) -> int:
        os.chdir(self.directory)
        place = JobPlace()
        records.end_file(place.folder, place.job, place.rank).unlink(missing_ok=True)
        try:
            self._watch_term(place)
            code, reason = self._work(), "done"
        except DinoCellError as error:
            code, reason = error.exit_code, str(error)
            print(f"error: {' '.join(reason.split())}", file=sys.stderr)
        except Exception as error:
            code, reason = 1, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            traceback.print_exc()
        if code == EXIT_STOPPED:
            reason = self._stopped(place)
            if reason == "":
                return 0
        elif code and reason == "done":
            reason = "finished, but not everything could be done; the log says what"
        records.write_end(place.folder, place.job, place.rank, code, reason)
        if code:
            _leave(code)
        return 0

    def _watch_term(self, place: JobPlace) -> None:
        """submitit drops SIGTERM. A training run notes it and saves; the others, whose results are files, leave."""
        if not self.stage.is_array:
            early: list[int] = []
            signal.signal(signal.SIGTERM, lambda number, frame: early.append(number))
            from dinocell.training.signals import note_early_term  # imports torch, which takes seconds

            note_early_term()
            if early:
                signal.raise_signal(signal.SIGTERM)
            return
        requeue: Any = signal.getsignal(signal.SIGUSR2)

        def leave(number: int, frame: Any) -> None:
            _ignore_signals()
            if place.preempted():
                requeue(signal.SIGUSR2, None)
            reason = "stopped by SIGTERM; the same command goes on with what is missing"
            records.write_end(place.folder, place.job, place.rank, EXIT_STOPPED, reason)
            sys.exit(EXIT_STOPPED)

        signal.signal(signal.SIGTERM, leave)

    def _work(self) -> int:
        stage, settings, array = self.stage, self.stage.parse(self.arguments), self.array
        if array is None:
            return stage.run(settings)
        assert stage.share is not None and stage.merge is not None
        if self.index is not None:
            stage.share(settings, Share(index=self.index, count=array.count, since=array.since))
            array.finish(self.index)
            return 0
        array.check_complete()
        code = stage.merge(settings, array.count, array.since)
        array.close()
        return code

    def _stopped(self, place: JobPlace) -> str:
        """After a stage has saved and left early: requeue, or say in one sentence why not. All ranks answer alike."""
        from dinocell.training import distributed
        from dinocell.training.signals import stopped_by

        reason = ""
        if place.rank == 0:
            if stopped_by() == "SIGTERM" and not place.preempted():
                reason = "stopped by SIGTERM, the checkpoint is written; the same command continues the run"
            elif self.requeues >= self.max_requeues:
                reason = self._limit()
        reason = distributed.broadcast_object(reason)
        if reason:
            log.info(reason)
        elif place.rank == 0:
            # No signal may disturb what follows: submitit's handler dumps the next start, requeues, and exits.
            handler: Any = signal.getsignal(signal.SIGUSR2)
            _ignore_signals()
            try:
                handler(signal.SIGUSR2, None)
            except (OSError, subprocess.SubprocessError) as error:
                reason = f"could not be requeued ({error}); the checkpoint is written, the same command continues"
                log.info(reason)
                records.write_end(place.folder, place.job, place.rank, EXIT_STOPPED, reason)
                distributed.abandon()  # the other ranks have left
                sys.exit(EXIT_STOPPED)
        return reason

    def _limit(self) -> str:
        return (
            f"not requeued: {self.requeues} requeues are the limit (profile.max_requeues); the last checkpoint is "
            "good, the same command continues the run"
        )

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same job again; the stage itself resumes from its run folder."""
        import submitit

        if self.requeues >= self.max_requeues:
            log.info(self._limit())
            return None
        return submitit.helpers.DelayedSubmission(replace(self, requeues=self.requeues + 1))


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class JobPlace:
    """Where this process stands in submitit's job."""

    def __init__(self) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        self.job: str = environment.job_id
        self.rank: int = environment.global_rank
        self.folder = Path(environment.paths.folder)
        self.slurm = environment.name() == "slurm"

    def preempted(self) -> bool:
        """Whether a SIGTERM announces a preemption: the job still counts as running, while scancel ends it at once."""
        if not self.slurm:
            return False
        try:
            shown = subprocess.run(
                ["scontrol", "-o", "show", "job", self.job], capture_output=True, text=True, timeout=30, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return False
        return "JobState=RUNNING" in shown.split()


def _leave(code: int) -> None:
    """Exit with the stage's code. Ranks that stopped together leave together: srun kills the job at the first."""
    from dinocell.training import distributed

    if code == EXIT_STOPPED:
        distributed.barrier()
    else:
        distributed.abandon()
    sys.exit(code)
