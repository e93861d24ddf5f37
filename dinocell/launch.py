"""SLURM through submitit: one picklable job per stage that saves, requeues and continues. Imports submitit lazily."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinocell import config, log
from dinocell.cluster import records, stages
from dinocell.cluster.follow import Watch, follow
from dinocell.cluster.profile import Profile, submitit_parameters, take_profile
from dinocell.cluster.stages import Plan, Stage
from dinocell.errors import ConfigError, DinoCellError

EXIT_STOPPED = 75  # as dinocell.checkpoint.EXIT_STOPPED, which would import torch here
LOCAL_STARTS = 6  # submitit's local executor starts a job no more often than this

USAGE = """Submit a stage as a SLURM job through submitit.

usage: slurm/submit.py {stages} [--profile FILE] [--config FILE]
                       [--dry-run | --local] [--wait | --follow] [key=value …]

  --profile FILE   the cluster's settings (slurm/profiles/*.yaml); profile.KEY=VALUE overrides one of them
  --config FILE    the stage's recipe; every other argument is the stage's own, as for its script
  --dry-run        print the sbatch script instead of submitting it
  --local          run the same job on this machine, without SLURM, and wait for it
  --wait           wait for the end and exit with the job's code (0 done, 75 stopped and saved, else failed)
  --follow         the same, and print the log as it grows

Every profile key:
"""


class StageJob:
    """What a job runs: a stage with its arguments. Pickled by submitit, called once in every process of the job."""

    def __init__(
        self, stage: Stage, arguments: Sequence[str], directory: str, *, max_requeues: int = 20, requeues: int = 0
    ) -> None:
        self.stage = stage
        self.arguments = list(arguments)
        self.directory = directory
        self.max_requeues = max_requeues
        self.requeues = requeues

    def __call__(self) -> int:
        os.chdir(self.directory)
        place = JobPlace()
        records.end_file(place.folder, place.job, place.rank).unlink(missing_ok=True)
        try:
            code, reason = stages.run(self.stage, self.arguments), "done"
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
        records.write_end(place.folder, place.job, place.rank, code, reason)
        if code:
            _leave(code)
        return 0

    def _stopped(self, place: JobPlace) -> str:
        """After a stage has saved and left early: requeue, or say in one sentence why not. All ranks answer alike."""
        from dinocell import checkpoint, distributed

        reason = ""
        if place.rank == 0:
            if checkpoint.stopped_by() == "SIGTERM" and not place.preempted():
                reason = "stopped by SIGTERM, the checkpoint is written; the same command continues the run"
            elif self.requeues >= self.max_requeues:
                reason = self._limit()
        reason = distributed.broadcast_object(reason)
        if reason:
            log.info(reason)
        elif place.rank == 0:
            # No signal may disturb what follows: submitit's handler dumps the next start, requeues, and exits.
            handler: Any = signal.getsignal(signal.SIGUSR2)
            for number in checkpoint.StopSignal.SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            handler(signal.SIGUSR2, None)
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
        again = StageJob(
            self.stage,
            self.arguments,
            self.directory,
            max_requeues=self.max_requeues,
            requeues=self.requeues + 1,
        )
        return submitit.helpers.DelayedSubmission(again)


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
    from dinocell import distributed

    if code == EXIT_STOPPED:
        distributed.barrier()
    else:
        distributed.abandon()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """The `slurm/submit.py` command."""
    command = list(sys.argv[1:] if argv is None else argv)
    if not command or "-h" in command or "--help" in command:
        print(USAGE.replace("{stages}", "{" + ",".join(stages.STAGES) + "}") + config.describe(Profile))
        return 0
    stage = stages.known_stage(command[0])
    flags = {flag: flag in command for flag in ("--local", "--dry-run", "--wait", "--follow")}
    profile, arguments = take_profile([a for a in command[1:] if a not in flags])
    planned = stages.plan(stage, arguments)
    job = StageJob(stage, arguments, str(Path.cwd()), max_requeues=profile.max_requeues)
    if flags["--dry-run"]:
        print(sbatch_script(profile))
        return 0
    watch = _submit_here(job, profile) if flags["--local"] else _submit(job, profile)
    script = "" if flags["--local"] else sbatch_script(profile)
    records.write_submission(
        planned.run_folder,
        watch.job,
        command=["slurm/submit.py", *command],
        settings=planned.settings,
        script=script,
        profile=config.to_yaml(profile),
    )
    _tell(watch, planned)
    return follow(watch, show=flags["--follow"]) if flags["--local"] or flags["--wait"] or flags["--follow"] else 0


def sbatch_script(profile: Profile) -> str:
    """The script that would be submitted; needs no SLURM on this machine."""
    from submitit.slurm import slurm as submitit_slurm

    command = f"{profile.python_command()} -u -m submitit.core._submit {profile.folder}"
    parameters = submitit_parameters(profile)
    return str(submitit_slurm._make_sbatch_string(command=command, folder=profile.folder, **parameters))


def _submit(job: StageJob, profile: Profile) -> Watch:
    import submitit

    if submitit.SlurmExecutor.affinity() < 0:
        raise ConfigError("srun is not on this machine's PATH; submit from a login node, or use --local or --dry-run")
    executor = submitit.SlurmExecutor(
        folder=profile.folder, max_num_timeout=profile.max_requeues, python=profile.python_command()
    )
    executor.update_parameters(**submitit_parameters(profile))
    try:
        submitted = executor.submit(job)
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"sbatch refused the job: {' '.join(str(error).split())[:400]}") from error
    return Watch.on_slurm(submitted)


def _submit_here(job: StageJob, profile: Profile) -> Watch:
    import submitit

    if profile.nodes > 1:
        raise ConfigError(f"profile.nodes: --local has one machine, not {profile.nodes}; add profile.nodes=1")
    job.max_requeues = min(job.max_requeues, LOCAL_STARTS - 1)
    executor = submitit.LocalExecutor(folder=profile.folder, max_num_timeout=job.max_requeues)
    executor.update_parameters(
        timeout_min=profile.time_minutes,
        tasks_per_node=profile.tasks_per_node,
        gpus_per_node=profile.gpus_per_node,
        signal_delay_s=profile.signal_delay_seconds,
    )
    return Watch.on_this_machine(executor.submit(job))


def _tell(watch: Watch, planned: Plan) -> None:
    log.info(f"job     {watch.job}")
    log.info(f"run     {planned.run_folder}")
    log.info(f"watch   tail -F {watch.logs[0]}")
    log.info(f"stop    {watch.stop_command}")
    log.info("resume  run the same command again: the run folder is continued")
