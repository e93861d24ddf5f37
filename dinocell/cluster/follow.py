"""Wait for a submitted job, print its log as it grows, and report how it ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinocell.cluster.records import End, read_end
from dinocell.core import log
from dinocell.core.errors import EXIT_STOPPED

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between questions to the controller, which others need too


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A submitted job: where it writes, how it is stopped, and if it continues.

    Of an array, `job` is the merge, `array` the number of the array and `tasks` the jobs whose ends are reported.
    """

    job: str
    folder: Path
    logs: tuple[Path, ...]
    stop_command: str
    active: Callable[[], bool]
    array: str = ""
    tasks: tuple[str, ...] = ()

    @staticmethod
    def on_slurm(submitted: Any, tasks: Sequence[Any] = ()) -> Watch:
        """A job of submitit's SLURM executor; `tasks` are those of the array that it merges."""
        job = str(submitted.job_id)
        names = tuple(str(task.job_id) for task in tasks)
        array = names[0].partition("_")[0] if names else ""
        return Watch(
            job=job,
            folder=Path(submitted.paths.folder),
            logs=(Path(submitted.paths.stdout), Path(submitted.paths.stderr)),
            stop_command=f"scancel {array} {job}" if array else f"scancel {job}",
            active=lambda: queued(job),
            array=array,
            tasks=names,
        )

    @staticmethod
    def on_this_machine(submitted: Any) -> Watch:
        """A job of submitit's local executor."""
        job = str(submitted.job_id)
        return Watch(
            job=job,
            folder=Path(submitted.paths.folder),
            logs=(Path(submitted.paths.stdout), Path(submitted.paths.stderr)),
            stop_command=f"kill {job}",
            active=lambda: not submitted.done(),
        )

    @property
    def show_logs(self) -> str:
        """Paths for `tail -F`."""
        return f"{self.folder}/{self.array}_*_log.*" if self.array else " ".join(map(str, self.logs))


def queued(job: str) -> bool:
    """True while SLURM has the job waiting, running or ending."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    if done.returncode:
        return "Invalid job id" not in done.stderr  # anything else: the controller is busy or away for a moment
    return bool(done.stdout.strip())


def follow_job(watch: Watch, *, show: bool) -> int:
    """Wait for the end of the job; with `show` print what its logs gain meanwhile. Returns its exit code."""
    tails: list[_Tail | _Ends] = [_Tail(path) for path in watch.logs] if show else []
    if show and watch.tasks:
        tails.append(_Ends(watch))
    pause = SHORTEST_PAUSE
    try:
        while watch.active():
            grown = [tail.print_new() for tail in tails]
            pause = SHORTEST_PAUSE if any(grown) else min(pause * 1.5, LONGEST_PAUSE)
            time.sleep(pause)
    except KeyboardInterrupt:
        log.info(f"no longer watching; the job continues · stop it with: {watch.stop_command}")
        raise
    for tail in tails:
        tail.print_new()
    end = read_end(watch.folder, watch.job) or End(code=1, sentence="it was killed before it could say why")
    if end.code:
        (log.info if end.code == EXIT_STOPPED else log.warning)(
            f"job {watch.job}: {end.sentence} · log {watch.logs[1]}"
        )
    return end.code


class _Tail:
    """Prints what a growing file has gained."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def print_new(self) -> bool:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return False
        self._read += len(new)
        sys.stdout.write(new.decode("utf-8", errors="replace"))
        sys.stdout.flush()
        return bool(new)


class _Ends:
    """Prints how the tasks of an array ended, each once."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._open = watch, list(watch.tasks)

    def print_new(self) -> bool:
        ended = [(task, end) for task in self._open if (end := read_end(self._watch.folder, task)) is not None]
        for task, end in ended:
            self._open.remove(task)
            log.info(
                f"task {task}: {end.sentence} ({len(self._watch.tasks) - len(self._open)}/{len(self._watch.tasks)})"
            )
        return bool(ended)
