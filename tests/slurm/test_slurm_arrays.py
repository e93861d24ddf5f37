"""Curation as a job array on a real SLURM: one task is killed, only that one is submitted again."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinocell.datasets.synthetic.sample import write_sample

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_task_is_submitted_again_alone_and_merged(slurm: Any, tmp_path: Path, repository: Path) -> None:
    images, out = tmp_path / "sample/unlabelled", tmp_path / "out"
    write_sample(tmp_path / "sample", n_unlabelled=6, n_train=0, n_val=0, n_test=0, size=96, seed=1)
    profile = [f"profile.folder={tmp_path}/logs", "profile.cpus_per_task=1", "profile.time_minutes=5"]
    curate = ["curate", str(images), "--out", str(out), "workers=1"]

    def submit(*more: str, code: int = 0) -> str:
        command = [sys.executable, "slurm/submit.py", *curate, *profile, "--array", "3", *more]
        done = subprocess.run(
            command, cwd=repository, env=slurm.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = submit("profile.extra={begin: now+300}")  # nothing starts before the test is ready
    found = re.search(r"merge of array (\d+)", said)
    assert found is not None
    array, merge = found.group(1), re.search(r"^job +(\d+)", said, re.MULTILINE).group(1)  # type: ignore[union-attr]
    for job in (f"{array}_1", array, merge):
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
        if job.endswith("_1"):
            slurm.wait_until(job, "RUNNING")
            slurm("scancel", "--signal=KILL", job)
    assert slurm.wait_until(merge, "COMPLETED", "FAILED", seconds=90) == "FAILED"
    error = (tmp_path / "logs" / f"{merge}_0_log.err").read_text()
    assert "1 of 3 tasks have not finished (1;" in error
    assert "Traceback" not in error
    assert not (out / "manifest.csv").exists()

    said = submit("--follow")
    assert "1 of 3 tasks to do" in said
    single = [sys.executable, "data_curation/curate.py", str(images), "--out", str(tmp_path / "single"), "workers=1"]
    subprocess.run(single, cwd=repository, env=slurm.environment, check=True, capture_output=True, timeout=60)
    assert rows(out / "manifest.csv") == rows(tmp_path / "single" / "manifest.csv")
    assert (out / "contact_sheet.html").is_file()
    assert len(list((out / "crops").rglob("*.png"))) == len(rows(out / "manifest.csv")) > 0
