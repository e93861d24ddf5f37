"""Records of a job for people: the end of each process, and exactly what was submitted."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dinocell import __version__
from dinocell.core.errors import EXIT_STOPPED


@dataclass(frozen=True, kw_only=True)
class End:
    """End of one process of a job: exit code (0 done, 75 stopped and saved, else failed) and one sentence."""

    code: int
    sentence: str


def end_file(folder: Path, job: str, rank: int) -> Path:
    """Path of a process's `End`, beside its log."""
    return folder / f"{job}_{rank}_end.txt"


def write_end(folder: Path, job: str, rank: int, code: int, reason: str) -> None:
    """Note how this process ended; the time of the file says who was first."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    verb = "failed" if code not in (0, EXIT_STOPPED) else "ended"
    sentence = " ".join(f"rank {rank} on {host} {verb} at {datetime.now():%H:%M:%S}: {reason}".split())
    end_file(folder, job, rank).write_text(f"{code} {sentence}\n", encoding="utf-8")


def read_end(folder: Path, job: str, rank: int = 0) -> End | None:
    """Read the end of a process; None while it runs, or when it was killed."""
    try:
        code, _, sentence = end_file(folder, job, rank).read_text(encoding="utf-8").strip().partition(" ")
        return End(code=int(code), sentence=sentence)
    except (OSError, ValueError):
        return None


def write_submission(
    run_folder: Path, job: str, *, command: Sequence[str], settings: str, script: str, profile: str
) -> Path:
    """Keep what was submitted in `RUN/jobs/JOB/`: command, settings, profile, batch script, code and environment.

    `submission.json` names the commit; uncommitted changes of the code are kept as `code.patch`.
    """
    folder = run_folder / "jobs" / job
    folder.mkdir(parents=True, exist_ok=True)
    code = code_version()
    patch = code.pop("patch", "")
    about = {
        "job": job,
        "submitted": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "directory": str(Path.cwd()),
        "command": shlex.join(command),
        "code": code,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "variables": relevant_variables(os.environ),
    }
    (folder / "submission.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / "settings.yaml").write_text(settings, encoding="utf-8")
    (folder / "profile.yaml").write_text(profile, encoding="utf-8")
    (folder / "script.sh").write_text(script, encoding="utf-8")
    (folder / "environment.txt").write_text("\n".join(installed_packages()) + "\n", encoding="utf-8")
    if patch:
        (folder / "code.patch").write_text(patch, encoding="utf-8")
    return folder


def code_version() -> dict[str, str]:
    """Package version and, in a git checkout, commit and uncommitted changes (`patch`)."""
    version = {"dinocell": __version__}
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD") if (root / "setup.py").is_file() else ""
    if commit:
        version["commit"] = commit.strip()
        version["patch"] = _git(root, "diff", "HEAD")
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py").split()
        version["changes"] = "yes" if version["patch"] or untracked else "no"
        if untracked:
            version["untracked"] = " ".join(untracked)
    return version


def _git(root: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def installed_packages() -> list[str]:
    """`name==version` of everything installed, sorted."""
    found = {
        f"{name}=={package.version}"
        for package in importlib.metadata.distributions()
        if (name := package.metadata["Name"])
    }
    return sorted(found, key=str.lower)


def relevant_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change what runs; never the whole environment, which may contain passwords."""
    wanted = ("CUDA_", "NCCL_", "OMP_", "MKL_", "TORCH", "PYTORCH", "DINOCELL_", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV")
    exact = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "MASTER_ADDR", "MASTER_PORT", "LOADEDMODULES")
    return {name: value for name, value in sorted(environment.items()) if name.startswith(wanted) or name in exact}
