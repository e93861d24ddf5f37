"""SLURM through submitit: one picklable job per stage that saves, requeues and continues. Imports submitit lazily."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dinocell.cluster import records
from dinocell.cluster.array import Array
from dinocell.cluster.follow import Watch, follow_job
from dinocell.cluster.job import LOCAL_STARTS, StageJob
from dinocell.cluster.profile import Profile, submitit_parameters, take_profile
from dinocell.cluster.stages import Plan, Stages, StageSpec, array_stages, find_stage
from dinocell.core import config, log
from dinocell.core.errors import ConfigError

USAGE = """Submit a stage as a SLURM job through submitit.

usage: slurm/submit.py {stages} [--profile FILE] [--config FILE]
                       [--array N] [--print-config | --dry-run | --local] [--wait | --follow] [key=value …]

  --profile FILE   the cluster's settings: a file, or 1gpu, 8gpu, cpu; profile.KEY=VALUE overrides one of them
  --config FILE    the stage's recipe, a file or a shipped one's name; every other argument is the stage's own
  --array N        {arrays}: a job array of N tasks, each with its share of the images, and a last
                   job that merges; the same command again submits only the tasks that have not finished
  --print-config   print the stage's resolved settings instead of submitting it
  --dry-run        print the sbatch script instead of submitting it
  --local          run the same job on this machine, without SLURM, and wait for it
  --wait           wait for the end and exit with the job's code (0 done, 75 stopped and saved, else failed)
  --follow         the same, and print the log as it grows

Every profile key:
"""


def main(stages: Stages, argv: Sequence[str] | None = None) -> int:
    """Run the `slurm/submit.py` command; `stages` is the table of commands that can be jobs."""
    command = list(sys.argv[1:] if argv is None else argv)
    if not command or "-h" in command or "--help" in command:
        print(USAGE.format(stages="{" + ",".join(stages) + "}", arrays=array_stages(stages)) + config.describe(Profile))
        return 0
    stage = find_stage(stages, command[0])
    flags = {flag: flag in command for flag in ("--local", "--print-config", "--dry-run", "--wait", "--follow")}
    count, rest = _take_count([a for a in command[1:] if a not in flags])
    profile, arguments = take_profile(rest)
    if count is not None and not stage.is_array:
        raise ConfigError(f"--array: {stage.name} is one job; arrays are for {array_stages(stages)}")
    planned = stage.plan(stage.parse(arguments))
    if count is not None and planned.one_job:
        raise ConfigError(f"--array: {planned.one_job}")
    _check_processes(stage, profile)
    job = StageJob(stage=stage, arguments=arguments, directory=str(Path.cwd()), max_requeues=profile.max_requeues)
    if flags["--print-config"]:
        print(planned.settings, end="")
        return 0
    if flags["--dry-run"]:
        print(sbatch_script(profile, count))
        return 0
    if count is None:
        array, jobs = None, [job]
    else:
        array = Array.of(planned.run_folder, stage.name, arguments, count)
        array.begin()
        jobs = [replace(job, array=array, index=index) for index in array.missing()]
        log.info(f"array   {len(jobs)} of {count} tasks to do")
        jobs.append(replace(job, array=array))
    keep = partial(_keep, planned, profile, command)
    if flags["--local"]:
        return _run_here(jobs, profile, planned, keep, show=flags["--follow"])
    watch = _submit(jobs, profile)
    keep(watch.job, sbatch_script(profile, count))
    _tell(watch, planned)
    return follow_job(watch, show=flags["--follow"]) if flags["--wait"] or flags["--follow"] else 0


def _take_count(arguments: list[str]) -> tuple[int | None, list[str]]:
    """Split `--array N` off a command line."""
    for place, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == "--array":
            used = 1 if separator else 2
            value = value if separator else (arguments[place + 1 : place + 2] or [""])[0]
            if not value.isdigit() or int(value) < 1:
                raise ConfigError(f"--array: {value!r} is not a number of tasks; give 1 or more")
            return int(value), arguments[:place] + arguments[place + used :]
    return None, arguments


def _check_processes(stage: StageSpec[Any], profile: Profile) -> None:
    processes = profile.nodes * profile.tasks_per_node
    if stage.is_array and processes > 1:
        raise ConfigError(
            f"profile: {stage.name} is one process, not {processes} that would all do the same; set profile.nodes=1 "
            "profile.tasks_per_node=1 (and at most one GPU), and --array N to share the images among N jobs"
        )


def _keep(planned: Plan, profile: Profile, command: list[str], job: str, script: str) -> None:
    records.write_submission(
        planned.run_folder,
        job,
        command=["slurm/submit.py", *command],
        settings=planned.settings,
        script=script,
        profile=config.to_yaml(profile),
    )


def sbatch_script(profile: Profile, count: int | None = None) -> str:
    """The script that would be submitted; needs no SLURM on this machine."""
    from submitit.slurm import slurm as submitit_slurm

    command = f"{profile.python_command()} -u -m submitit.core._submit {profile.folder}"
    parameters = submitit_parameters(profile)
    return str(
        submitit_slurm._make_sbatch_string(command=command, folder=profile.folder, map_count=count, **parameters)
    )


def _submit(jobs: Sequence[StageJob], profile: Profile) -> Watch:
    """Submit one job, or the tasks of an array (all but the last job) and their merge (the last)."""
    import submitit

    if submitit.SlurmExecutor.affinity() < 0:
        raise ConfigError("srun is not on this machine's PATH; submit from a login node, or use --local or --dry-run")
    executor = submitit.SlurmExecutor(
        folder=profile.folder, max_num_timeout=profile.max_requeues, python=profile.python_command()
    )
    parameters = submitit_parameters(profile)
    executor.update_parameters(**parameters)
    try:
        if jobs[-1].array is None:
            return Watch.on_slurm(executor.submit(jobs[0]))
        tasks = executor.submit_array(jobs[:-1]) if len(jobs) > 1 else []
        merge = {key: value for key, value in parameters.items() if key != "gpus_per_node"}
        merge |= {"job_name": f"{profile.name}-merge"}
        if tasks:
            merge |= {"dependency": f"afterany:{str(tasks[0].job_id).partition('_')[0]}"}
        executor = submitit.SlurmExecutor(
            folder=profile.folder, max_num_timeout=profile.max_requeues, python=profile.python_command()
        )
        executor.update_parameters(**merge)
        return Watch.on_slurm(executor.submit(jobs[-1]), tasks)
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"sbatch refused the job: {' '.join(str(error).split())[:400]}") from error


def _run_here(
    jobs: Sequence[StageJob], profile: Profile, planned: Plan, keep: Callable[[str, str], None], *, show: bool
) -> int:
    """Run the jobs on this machine one after the other; a task that fails does not keep the next from running."""
    import submitit

    if profile.nodes > 1:
        raise ConfigError(f"profile.nodes: --local has one machine, not {profile.nodes}; add profile.nodes=1")
    requeues = min(profile.max_requeues, LOCAL_STARTS - 1)
    executor = submitit.LocalExecutor(folder=profile.folder, max_num_timeout=requeues)
    executor.update_parameters(
        timeout_min=profile.time_minutes,
        tasks_per_node=profile.tasks_per_node,
        gpus_per_node=profile.gpus_per_node,
        signal_delay_s=profile.signal_delay_seconds,
    )
    code = 0
    for job in jobs:
        watch = Watch.on_this_machine(executor.submit(replace(job, max_requeues=requeues)))
        keep(watch.job, "")
        _tell(watch, planned)
        code = follow_job(watch, show=show)
    return code


def _tell(watch: Watch, planned: Plan) -> None:
    log.info(f"job     {watch.job}{f' (merge of array {watch.array})' if watch.array else ''}")
    log.info(f"run     {planned.run_folder}")
    log.info(f"watch   tail -F {watch.show_logs}")
    log.info(f"stop    {watch.stop_command}")
    log.info("resume  run the same command again: the run folder is continued")
