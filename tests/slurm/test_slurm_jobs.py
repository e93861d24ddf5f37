"""Both stages on two nodes of a real SLURM: preempted and continued runs end as undisturbed ones, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dinocell.cli.stages import STAGES
from dinocell.cluster import submit
from dinocell.core.files import load_file
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.progress import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = {"ssl": 24, "finetune": 24}
SSL = [
    "model.arch=vit_tiny",
    "model.depth=1",
    "model.image_size=32",
    "dino_head.prototypes=32",
    "dino_head.hidden=32",
    "ibot_head.prototypes=32",
    "ibot_head.hidden=32",
    "augment.global_size=32",
    "augment.local_size=16",
    "augment.local_crops=2",
    f"optim.epoch_steps={STEPS['ssl']}",
    "optim.batch_size=2",
    "data.workers=0",
    "checkpoint_every=4",
    "log_every=1",
    "tensorboard=false",
]
FINETUNE = [
    "crop_size=32",
    "input_size=32",
    "overlap=8",
    f"train.steps={STEPS['finetune']}",
    "train.batch_size=4",
    "train.log_every=1",
    "train.checkpoint_every=4",
    "data.workers=0",
    "validate.times=2",
    "decoder.neck_width=16",
    "device=cpu",
]

# Python calls an audit hook at each file that is opened: rank 1 loses its images after some steps, as by a dead disk.
LOST_DISK = """
import os, pathlib, signal, sys, time

images, metrics, how = {images!r}, pathlib.Path({metrics!r}), {how!r}

def lost(event, arguments):
    if event != "open" or not str(arguments[0]).startswith(images):
        return
    if not metrics.exists() or metrics.read_text().count('"train"') < 3:
        return
    if how == "kill -9":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(3600)
    raise OSError("the disk of n2 is gone")

if os.environ.get("SLURM_PROCID") == "1":
    sys.addaudithook(lost)
"""


class Runs:
    """Submits runs of a sample through slurm/submit.py."""

    def __init__(self, slurm: Any, folder: Path, repository: Path) -> None:
        self.slurm, self.folder, self.repository = slurm, folder, repository
        profile = ["nodes: 2", "tasks_per_node: 1", "cpus_per_task: 1", "time_minutes: 5", f"folder: {folder}/logs"]
        (folder / "two_nodes.yaml").write_text("\n".join(profile) + "\n")
        write_sample(folder / "sample", n_unlabelled=4, n_train=3, n_val=2, n_test=2, size=64, seed=5)

    def command(self, stage: str, name: str) -> list[str]:
        out = f"output_dir={self.folder / name}"
        if stage == "ssl":
            data = [f"data.root={self.folder / 'sample/unlabelled'}", *SSL]
            return ["ssl", "--config", "ssl/configs/vitt8_cpu.yaml", *data, out]
        data = [f"data.root={self.folder / 'sample/labelled'}", *FINETUNE]
        return ["finetune", "--config", "finetune/configs/vitt8_cpu.yaml", *data, out]

    def submit(self, stage: str, name: str, *more: str, code: int = 0) -> str:
        """Submit a run as slurm/submit.py does; returns what was printed."""
        profile = ["--profile", str(self.folder / "two_nodes.yaml")]
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.chdir(self.repository)
            for key, value in self.slurm.environment.items():
                patch.setenv(key, value)
            assert submit.main(STAGES, [*self.command(stage, name), *profile, *more]) == code, (
                said.getvalue() + self.logs()
            )
        return said.getvalue()

    def finish(self, job: str) -> str:
        return self.slurm.wait_until(job, "COMPLETED", "FAILED", "CANCELLED", seconds=90)

    def wait_for_step(self, name: str, step: int) -> None:
        metrics = self.folder / name / "metrics.jsonl"

        def there() -> bool:
            return any(row["step"] >= step for row in read_metrics(metrics))

        self.slurm.wait_for(there, f"step {step} of {name}\n{self.logs()}", 90)

    def logs(self) -> str:
        files = sorted((self.folder / "logs").glob("*_log.*"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def log(self, job: str, end: str = "out") -> str:
        path = self.folder / "logs" / f"{job}_0_log.{end}"
        return path.read_text() if path.is_file() else ""

    def last_checkpoint(self, stage: str, name: str) -> dict[str, Any]:
        return load_file(self.folder / name / "checkpoints" / f"step_{STEPS[stage]:08d}.pt")


def number(printed: str) -> str:
    found = re.search(r"^job +(\d+)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found.group(1)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Places where two checkpoints differ; clocks and folder names are no part of what was learnt."""
    if isinstance(one, dict):
        keys = (one.keys() | other.keys()) - {"output_dir", "seconds"}
        return [place for key in keys for place in differences(one.get(key), other.get(key), f"{where}.{key}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, list):
        return [
            place
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for place in differences(a, b, f"{where}[{i}]")
        ]
    return [] if one == other else [where]


@pytest.fixture(scope="module")
def runs(slurm: Any, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Runs:
    return Runs(slurm, tmp_path_factory.mktemp("slurm_runs"), repository)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> dict[str, str]:
    """Both stages without disturbance, on two nodes."""
    jobs = {stage: number(runs.submit(stage, f"{stage}_straight")) for stage in STEPS}
    for job in jobs.values():
        assert runs.finish(job) == "COMPLETED", runs.logs()
    return jobs


@pytest.mark.parametrize("stage", STEPS)
def test_a_run_spans_both_nodes_and_says_what_was_submitted(
    stage: str, runs: Runs, undisturbed: dict[str, str]
) -> None:
    job = undisturbed[stage]
    started = [(runs.folder / "logs" / f"{job}_{rank}_log.out").read_text() for rank in (0, 1)]
    assert all(f"global_rank={rank}(2)" in text and f"node={rank}(2)" in text for rank, text in enumerate(started))
    folder = runs.folder / f"{stage}_straight"
    assert (folder / "report.html").is_file()
    about = json.loads((folder / "jobs" / job / "submission.json").read_text())
    assert f"output_dir={folder}" in about["command"]
    assert "dinocell" in about["code"]
    assert any(line.startswith("torch==") for line in (folder / "jobs" / job / "environment.txt").read_text().split())
    again = (folder / "jobs" / job / "settings.yaml").read_text()
    assert again.splitlines()[0] in (folder / "config.yaml").read_text()


def test_preempted_it_requeues_and_ends_as_if_undisturbed(runs: Runs, undisturbed: dict[str, str], slurm: Any) -> None:
    job = number(runs.submit("ssl", "ssl_preempted"))
    runs.wait_for_step("ssl_preempted", 5)
    slurm("scancel", "--signal=USR2", job)  # as before the time limit
    slurm("scancel", "--signal=USR2", job)
    slurm.hurry(job)
    slurm.wait_for(lambda: "continuing" in runs.log(job), f"the second start\n{runs.logs()}")
    slurm("scancel", "--signal=TERM", job)  # as before a preemption, here before the first step: it counts as running
    slurm.hurry(job)
    assert runs.finish(job) == "COMPLETED", runs.logs()
    straight, broken = (runs.folder / name / "metrics.jsonl" for name in ("ssl_straight", "ssl_preempted"))
    assert read_metrics(straight, "train") == read_metrics(broken, "train")
    assert differences(runs.last_checkpoint("ssl", "ssl_straight"), runs.last_checkpoint("ssl", "ssl_preempted")) == []


def test_cancelled_it_saves_and_the_same_command_ends_as_if_undisturbed(
    runs: Runs, undisturbed: dict[str, str], slurm: Any
) -> None:
    job = number(runs.submit("finetune", "finetune_cancelled"))
    runs.wait_for_step("finetune_cancelled", 6)
    slurm("scancel", job)
    assert runs.finish(job) == "CANCELLED"
    slurm.wait_for(lambda: (runs.folder / "logs" / f"{job}_0_end.txt").is_file(), "the saved and ended run")
    assert "stopped by SIGTERM" in (runs.folder / "logs" / f"{job}_0_end.txt").read_text()
    runs.submit("finetune", "finetune_cancelled", "--wait")
    one, other = (runs.last_checkpoint("finetune", f"finetune_{end}") for end in ("straight", "cancelled"))
    assert differences(one, other) == []


def test_past_its_requeues_it_ends_with_a_clear_line_and_a_good_checkpoint(runs: Runs, slurm: Any) -> None:
    job = number(runs.submit("ssl", "ssl_limit", "profile.max_requeues=0"))
    runs.wait_for_step("ssl_limit", 5)
    slurm("scancel", "--signal=USR2", job)
    assert runs.finish(job) == "FAILED"  # unfinished: a job that depends on this one must not start
    assert "not requeued: 0 requeues are the limit (profile.max_requeues)" in runs.log(job)
    found = CheckpointManager(runs.folder / "ssl_limit" / "checkpoints").load_latest()
    assert found is not None and found[0] >= 5


@pytest.mark.parametrize("how", ["exception", "kill -9", "hang"])
def test_a_crashed_rank_ends_the_job_and_is_named(how: str, runs: Runs, slurm: Any, tmp_path: Path) -> None:
    # one rank meets an error that the other does not see: without help it would wait for it until the timeout
    name = f"ssl_{how.split()[0]}"
    about = {"images": str(runs.folder / "sample/unlabelled"), "metrics": str(runs.folder / name / "metrics.jsonl")}
    (tmp_path / "sitecustomize.py").write_text(LOST_DISK.format(how=how, **about))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    setup = "profile.setup=" + json.dumps([f"export PYTHONPATH={path}", "export DINOCELL_TIMEOUT_MINUTES=0.15"])
    job = number(runs.submit("ssl", name, setup))
    assert runs.finish(job) == "FAILED", runs.logs()
    error = runs.log(job, "err")
    if how == "exception":
        named = [line for line in error.splitlines() if line.startswith("rank ")]
        assert re.match(r"rank 1 on n2 failed at [\d:]+: data\.root: no image could be read", named[0]), error
    elif how == "kill -9":
        assert re.search(r"n2: task 1: Killed", error), error
    else:
        assert re.search(r"^rank 0 on n1 failed at .*[Tt]imed out", error, re.MULTILINE), error


def test_plain_srun_and_torchrun_in_an_allocation(slurm: Any, tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text(
        "from dinocell.training import distributed as d\n"
        "w = d.setup('cpu')\n"
        "assert sorted(d.gather_objects(w.rank)) == list(range(w.world_size))\n"
        "print(w.launcher, w.rank, w.world_size)\n"
    )
    python = shlex.quote(sys.executable)
    inner = f"{python} -m torch.distributed.run --standalone --nproc-per-node=1 {script}"
    (tmp_path / "job.sh").write_text(f"#!/bin/sh\nsrun {python} {script}\nsrun -N1 -n1 {inner}\n")
    ask = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", f"--output={tmp_path}/out"]
    job = slurm("sbatch", "--parsable", *ask, str(tmp_path / "job.sh")).strip()
    slurm.wait_until(job, "COMPLETED", "FAILED", seconds=90)
    said = sorted((tmp_path / "out").read_text().split("\n"))
    assert [line for line in said if line[:5] in ("slurm", "torch")] == [
        "slurm 0 2",
        "slurm 1 2",
        "torchrun 0 1",
    ], said
