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
from dinocell.cluster.requeueing import ignore_signals, requeue
from dinocell.cluster.stages import Share, StageSpec
from dinocell.core import log
from dinocell.core.errors import EXIT_STOPPED, DinoCellError, first_line
from dinocell.training.outcome import RunOutcome, StopName
from dinocell.training.signals import EarlySignal

LOCAL_STARTS = 6  # submitit's local executor starts a job no more often than this


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """The picklable job: a stage with its arguments. Pickled by submitit, called once in every process of the job.

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
        stopped_by: StopName = ""
        try:
            self._watch_term(place)
            outcome = self._work()
            code, reason, stopped_by = outcome.exit_code, "done", outcome.stopped_by
        except DinoCellError as error:
            code, reason = error.exit_code, first_line(error)
            print(f"error: {reason}", file=sys.stderr)
        except Exception as error:
            code, reason = 1, first_line(error, named=True)
            traceback.print_exc()
        if stopped_by:
            reason = self._stopped(place, stopped_by)
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
            signal.signal(signal.SIGTERM, EarlySignal())
            return

        def leave(number: int, frame: Any) -> None:
            ignore_signals()
            if place.preempted():
                place.requeue()
            reason = "stopped by SIGTERM; the same command resumes with what is missing"
            records.write_end(place.folder, place.job, place.rank, EXIT_STOPPED, reason)
            sys.exit(EXIT_STOPPED)

        signal.signal(signal.SIGTERM, leave)

    def _work(self) -> RunOutcome:
        stage, settings, array = self.stage, self.stage.parse(self.arguments), self.array
        if array is None:
            return stage.run(settings)
        assert stage.share is not None and stage.merge is not None
        if self.index is not None:
            stage.share(settings, Share(index=self.index, count=array.count, since=array.since))
            array.finish(self.index)
            return RunOutcome(folder=array.folder)
        array.check_complete()
        outcome = stage.merge(settings, array.count, array.since)
        array.close()
        return outcome

    def _stopped(self, place: JobPlace, stopped_by: StopName) -> str:
        """After a stage has saved and left early: requeue, or say in one sentence why not. All ranks answer alike."""
        from dinocell.training import distributed

        reason = ""
        if place.rank == 0:
            if stopped_by == "SIGTERM" and not place.preempted():
                reason = "stopped by SIGTERM, the checkpoint is written; the same command continues the run"
            elif self.requeues >= self.max_requeues:
                reason = self._limit()
        reason = distributed.broadcast_object(reason)
        if reason:
            log.info(reason)
        elif place.rank == 0:
            try:
                place.requeue()
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


class JobPlace:
    """Place of this process in submitit's job."""

    def __init__(self) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        self._environment = environment
        self.job: str = environment.job_id
        self.rank: int = environment.global_rank
        self.folder = Path(environment.paths.folder)
        self.slurm = environment.name() == "slurm"

    def preempted(self) -> bool:
        """True if a SIGTERM announces a preemption: the job still counts as running, while scancel ends it at once."""
        if not self.slurm:
            return False
        try:
            shown = subprocess.run(
                ["scontrol", "-o", "show", "job", self.job], capture_output=True, text=True, timeout=30, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return False
        return "JobState=RUNNING" in shown.split()

    def requeue(self) -> None:
        """Put this job back into the queue and exit; errors as `requeueing.requeue`."""
        import submitit

        pickled = self._environment.paths.submitted_pickle
        requeue(self._environment, submitit.helpers.DelayedSubmission.load(pickled))


def _leave(code: int) -> None:
    """Exit with the stage's code. Ranks that stopped together leave together: srun kills the job at the first."""
    from dinocell.training import distributed

    if code == EXIT_STOPPED:
        distributed.barrier()
    else:
        distributed.abandon()
    sys.exit(code)
