"""SLURM through submitit: one picklable job per stage that saves, requeues and continues. Imports submitit lazily."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dinocell import config, log
from dinocell.errors import ConfigError

Stage = Literal["ssl", "finetune", "curate"]
STAGES: tuple[str, ...] = get_args(Stage)

USAGE = """Submit a stage as a SLURM job through submitit.

usage: slurm/submit.py {ssl,finetune,curate} [--profile FILE] [--config FILE] [--local] [--dry-run] [key=value …]

  --profile FILE   the cluster's settings (slurm/profiles/*.yaml); profile.KEY=VALUE overrides one of them
  --config FILE    the stage's recipe, as for its own script; key=value overrides work the same
  --local          run the same job on this machine, without SLURM
  --dry-run        print the sbatch script instead of submitting it

Every profile key:
"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What to ask the cluster for."""

    name: str = config.field("dinocell", "job name")
    folder: str = config.field("slurm_logs", "folder of job scripts and logs; %j becomes the job's number")
    partition: str | None = config.field(None, "SLURM partition")
    account: str | None = config.field(None, "account to charge")
    qos: str | None = config.field(None, "quality of service")
    constraint: str | None = config.field(None, "node features, as sbatch --constraint")
    nodes: int = config.field(1, "nodes", "nodes")
    tasks_per_node: int = config.field(1, "processes per node: one per GPU", "processes")
    gpus_per_node: int = config.field(0, "GPUs per node", "GPUs")
    cpus_per_task: int = config.field(2, "CPU cores per process: its own and its data workers'", "cores")
    memory_gb: int | None = config.field(None, "memory per node; null leaves the cluster's default", "GB")
    time_minutes: int = config.field(60, "time limit", "min")
    signal_delay_seconds: int = config.field(120, "warning before the time limit, in which to save and requeue", "s")
    max_requeues: int = config.field(20, "how often a job past its time limit may start again")
    setup: tuple[str, ...] = config.field((), "shell lines before the job: module load …, source …/activate")
    mail_user: str | None = config.field(None, "address for SLURM's mails")
    extra: dict[str, str] = config.field(factory=dict, doc="further sbatch options, name: value")

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "cpus_per_task", "time_minutes"):
            if getattr(self, key) < 1:
                raise ConfigError(f"profile.{key}: {getattr(self, key)} is too small; at least 1")
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            raise ConfigError(
                f"profile.tasks_per_node: {self.tasks_per_node} processes for {self.gpus_per_node} GPUs a node; "
                f"every GPU needs its own process, set tasks_per_node={self.gpus_per_node}"
            )


class StageJob:
    """What a job runs: a stage with its arguments. Pickled by submitit, called once in every process of the job."""

    def __init__(self, stage: Stage, arguments: Sequence[str], directory: str) -> None:
        self.stage = stage
        self.arguments = list(arguments)
        self.directory = directory

    def __call__(self) -> int:
        os.chdir(self.directory)
        from dinocell import checkpoint

        code = stage_runner(self.stage)(self.arguments)
        if code == checkpoint.EXIT_STOPPED:
            # The run has saved and put submitit's own handlers back: hand it the signal, so that rank 0 requeues.
            signal.raise_signal(signal.SIGUSR2)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same job again; the stage itself resumes from its run folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(StageJob(self.stage, self.arguments, self.directory))


def stage_runner(stage: Stage) -> Callable[[list[str]], int]:
    """The function that runs a stage's command-line arguments in this process and returns its exit code."""
    match stage:
        case "ssl":
            from dinocell import pretrain

            return lambda arguments: _run_recipe(pretrain.PretrainConfig, pretrain.run, arguments)
        case "finetune":
            from dinocell import finetune

            return lambda arguments: _run_recipe(finetune.FinetuneConfig, finetune.run, arguments)
        case "curate":
            from dinocell import curation

            return lambda arguments: _curate(curation.parse(arguments))


def _curate(parsed: Any) -> int:
    from dinocell import curation

    curation.run(parsed)
    return 0


def _run_recipe(cls: type, run: Callable[[Any], Any], arguments: list[str]) -> int:
    path, overrides, _ = config.parse_arguments(arguments)
    return config.run_stage(run, config.load(cls, path, overrides))


def main(argv: Sequence[str] | None = None) -> int:
    """The `slurm/submit.py` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + config.describe(Profile))
        return 0
    stage = _known_stage(arguments.pop(0))
    if "--help" in arguments or "-h" in arguments:
        print(USAGE + config.describe(Profile))
        return 0
    flags = {flag: flag in arguments for flag in ("--local", "--dry-run")}
    arguments = [a for a in arguments if a not in flags]
    profile, arguments = _take_profile(arguments)
    _check_stage_arguments(stage, arguments)
    job = StageJob(stage, arguments, str(Path.cwd()))
    if flags["--dry-run"]:
        print(sbatch_script(profile))
        return 0
    return _submit(job, profile, local=flags["--local"])


def _known_stage(name: str) -> Stage:
    if name not in STAGES:
        raise ConfigError(f"stage {name!r} is not known; use one of {', '.join(STAGES)}")
    return name  # type: ignore[return-value]


def _take_profile(arguments: list[str]) -> tuple[Profile, list[str]]:
    """Split off `--profile FILE` and `profile.key=value`."""
    path: str | None = None
    own: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--profile":
            path = next(pending, None)
            if path is None:
                raise ConfigError("--profile needs the path of a YAML file after it")
        elif argument.startswith("--profile="):
            path = argument.partition("=")[2]
        elif argument.startswith("profile."):
            own.append(argument.removeprefix("profile."))
        else:
            rest.append(argument)
    return config.load(Profile, path, own), rest


def _check_stage_arguments(stage: Stage, arguments: list[str]) -> None:
    """Refuse a mistyped key now, not in the job's log two days later."""
    match stage:
        case "ssl":
            from dinocell.pretrain import PretrainConfig as Config
        case "finetune":
            from dinocell.finetune import FinetuneConfig as Config  # type: ignore[assignment]
        case "curate":
            from dinocell import curation

            curation.parse(arguments)
            return
    path, overrides, _ = config.parse_arguments(arguments)
    config.load(Config, path, overrides)


def _parameters(profile: Profile) -> dict[str, Any]:
    """The profile in submitit's SLURM terms."""
    parameters: dict[str, Any] = {
        "job_name": profile.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_per_node,
        "gpus_per_node": profile.gpus_per_node or None,
        "cpus_per_task": profile.cpus_per_task,
        "mem": f"{profile.memory_gb}GB" if profile.memory_gb else None,
        "time": profile.time_minutes,
        "signal_delay_s": profile.signal_delay_seconds,
        "setup": list(profile.setup) or None,
        "mail_user": profile.mail_user,
        "mail_type": "END,FAIL,REQUEUE" if profile.mail_user else None,
        # a crashed rank must end the job, not leave the others waiting in a collective
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": dict(profile.extra) or None,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def sbatch_script(profile: Profile) -> str:
    """The script that would be submitted; needs no SLURM on this machine."""
    from submitit.slurm import slurm as submitit_slurm

    command = f"{sys.executable} -u -m submitit.core._submit {profile.folder}"
    return str(submitit_slurm._make_sbatch_string(command=command, folder=profile.folder, **_parameters(profile)))


def _submit(job: StageJob, profile: Profile, *, local: bool) -> int:
    import submitit

    if local:
        executor: Any = submitit.LocalExecutor(folder=profile.folder, max_num_timeout=profile.max_requeues)
        executor.update_parameters(
            timeout_min=profile.time_minutes,
            tasks_per_node=profile.tasks_per_node,
            signal_delay_s=profile.signal_delay_seconds,
        )
    else:
        if submitit.SlurmExecutor.affinity() < 0:
            raise ConfigError(
                "srun is not on this machine's PATH; submit from a login node, or use --local or --dry-run"
            )
        executor = submitit.SlurmExecutor(folder=profile.folder, max_num_timeout=profile.max_requeues)
        executor.update_parameters(**_parameters(profile))
    submitted = executor.submit(job)
    log.info(f"job {submitted.job_id} submitted · log {submitted.paths.stdout}")
    if not local:
        log.info(f"watch   tail -F {submitted.paths.stdout}\nstop    scancel {submitted.job_id}")
        log.info("resume  run the same command again: the run folder is continued")
        return 0
    submitted.wait()
    error = submitted.exception()
    if error is not None:
        log.warning(
            f"job {submitted.job_id} failed, see {submitted.paths.stderr}: {str(error).strip().splitlines()[-1]}"
        )
        return 1
    return max(submitted.results())
