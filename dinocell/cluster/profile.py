"""Resources to request from the cluster: one small YAML file per cluster and size of job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinocell.core import config, fields
from dinocell.core.errors import EXIT_STOPPED, ConfigError
from dinocell.core.recipes import find_recipe


@dataclass(frozen=True, kw_only=True)
class Profile(fields.Settings):
    """Resources to request from the cluster."""

    name: str = fields.field("dinocell", "job name")
    folder: str = fields.field("slurm_logs", "folder of job scripts and logs; %j becomes the job's number")
    partition: str | None = fields.field(None, "SLURM partition")
    account: str | None = fields.field(None, "account to charge")
    qos: str | None = fields.field(None, "quality of service")
    constraint: str | None = fields.field(None, "node features, as sbatch --constraint")
    nodes: int = fields.field(1, "nodes", "nodes", at_least=1)
    tasks_per_node: int = fields.field(1, "processes per node: one per GPU", "processes", at_least=1)
    gpus_per_node: int = fields.field(0, "GPUs per node", "GPUs", at_least=0)
    gpu_type: str | None = fields.field(None, "kind of GPU where the cluster has several, e.g. a100")
    cpus_per_task: int = fields.field(2, "CPU cores per process: its own and its data workers'", "cores", at_least=1)
    memory_gb: int | None = fields.field(None, "memory per node; null leaves the cluster's default", "GB", at_least=1)
    time_minutes: int = fields.field(60, "time limit", "min", at_least=1)
    signal_delay_seconds: int = fields.field(
        120, "warning before the time limit, in which to save and requeue", "s", above=0
    )
    max_requeues: int = fields.field(20, "how often a job may put itself back into the queue", at_least=0)
    array_parallelism: int = fields.field(64, "tasks of an array that run at the same time", "tasks", at_least=1)
    modules: tuple[str, ...] = fields.field((), "environment modules to load, in order")
    conda: str | None = fields.field(None, "conda environment to activate: a name or a folder")
    venv: str | None = fields.field(None, "virtual environment to activate: its folder")
    setup: tuple[str, ...] = fields.field((), "further shell lines before the job")
    container: str | None = fields.field(None, "command put before python, e.g. apptainer exec --nv image.sif")
    python: str | None = fields.field(
        None, "interpreter of the job; null takes the one that submits, or python with conda, venv or container"
    )
    mail_user: str | None = fields.field(None, "address for SLURM's mails")
    mail_type: str = fields.field("END,FAIL,REQUEUE", "occasions of a mail, if mail_user is set")
    extra: dict[str, str] = fields.field(factory=dict, doc="further sbatch options, name: value")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            raise fields.SettingError(
                "tasks_per_node",
                f"{self.tasks_per_node} processes for {self.gpus_per_node} GPUs per node; every GPU needs its own "
                f"process, set tasks_per_node={self.gpus_per_node}",
            )
        if self.signal_delay_seconds >= 60 * self.time_minutes:
            raise fields.SettingError(
                "signal_delay_seconds",
                f"{self.signal_delay_seconds} s of warning do not fit into time_minutes={self.time_minutes}",
            )
        if self.conda and self.venv:
            raise fields.SettingError("conda", f"{self.conda!r} and venv={self.venv!r} are both set; choose one")

    def setup_lines(self) -> list[str]:
        """Shell lines that prepare the environment, in the batch script before the job."""
        lines = [f"module load {name}" for name in self.modules]
        if self.conda:
            lines += [
                'source "$(conda info --base)/etc/profile.d/conda.sh"',
                f"conda activate {shlex.quote(self.conda)}",
            ]
        if self.venv:
            lines.append(f"source {shlex.quote(f'{self.venv}/bin/activate')}")
        return [*lines, *self.setup]

    def python_command(self) -> str:
        """The shell words that start the job's interpreter."""
        other = self.conda or self.venv or self.container
        python = self.python or ("python" if other else shlex.quote(sys.executable))
        return f"{self.container} {python}" if self.container else python


def take_profile(arguments: Sequence[str]) -> tuple[Profile, list[str]]:
    """Split `--profile FILE` and `profile.key=value` off a command line; returns the profile and the rest.

    Raises:
        ConfigError: the file is missing, or a key or value is wrong.
    """
    path: str | None = None
    own: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--profile":
            path = next(pending, None)
            if path is None:
                raise ConfigError("--profile needs the path of a YAML file, or the name of a shipped profile, after it")
        elif argument.startswith("--profile="):
            path = argument.partition("=")[2]
        elif argument.startswith("profile."):
            own.append(argument.removeprefix("profile."))
        else:
            rest.append(argument)
    try:
        return config.load(Profile, find_recipe(path, "slurm") if path is not None else None, own), rest
    except fields.SettingError as error:
        raise error.within("profile") from None


def submitit_parameters(profile: Profile) -> dict[str, Any]:
    """The profile in the terms of submitit's SLURM executor."""
    gpus = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else profile.gpus_per_node
    parameters: dict[str, Any] = {
        "job_name": profile.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_per_node,
        "gpus_per_node": gpus if profile.gpus_per_node else None,
        "cpus_per_task": profile.cpus_per_task,
        "mem": f"{profile.memory_gb}GB" if profile.memory_gb else None,
        "time": profile.time_minutes,
        "signal_delay_s": profile.signal_delay_seconds,
        "array_parallelism": profile.array_parallelism,
        "setup": profile.setup_lines() or None,
        "teardown": failure_lines(profile.folder),
        "mail_user": profile.mail_user,
        "mail_type": profile.mail_type if profile.mail_user else None,
        # a crashed rank must end the job, not leave the others waiting in a collective
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **profile.extra},  # some clusters forbid it unless asked for
    }
    return {key: value for key, value in parameters.items() if value is not None}


def failure_lines(folder: str) -> list[str]:
    """Shell lines after the job: the log of rank 0 ends with the ranks that failed, the first one first."""
    where = shlex.quote(folder).replace("%j", "'$id'" if shlex.quote(folder) != folder else "$id")
    return [
        "code=$?",
        'id="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        f'ls -tr {where}/"$id"_*_end.txt 2>/dev/null | while read -r end; do',
        f'  sed -n -e "/^0 /d" -e "/^{EXIT_STOPPED} /d" -e "s/^[0-9]* //p" "$end" >&2',
        "done",
        "exit $code",
    ]
