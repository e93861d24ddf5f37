"""Both stages on two nodes of a real SLURM: preempted and continued runs end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dinocell.checkpoint import load_file
from dinocell.data import synthetic
from dinocell.log import read_metrics

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


class Runs:
    """Submits runs of a sample through slurm/submit.py."""

    def __init__(self, slurm: Any, folder: Path, repository: Path) -> None:
        self.slurm, self.folder, self.repository = slurm, folder, repository
        profile = ["nodes: 2", "tasks_per_node: 1", "cpus_per_task: 1", "time_minutes: 5", f"folder: {folder}/logs"]
        (folder / "two_nodes.yaml").write_text("\n".join(profile) + "\n")
        synthetic.write_sample(folder / "sample", n_unlabelled=4, n_train=3, n_val=2, n_test=2, size=64, seed=5)

    def command(self, stage: str, name: str) -> list[str]:
        out = f"output_dir={self.folder / name}"
        if stage == "ssl":
            data = [f"data.root={self.folder / 'sample/unlabelled'}", *SSL]
            return ["ssl", "--config", "ssl/configs/vitt8_cpu.yaml", *data, out]
        data = [f"data.root={self.folder / 'sample/labelled'}", *FINETUNE]
        return ["finetune", "--config", "finetune/configs/vitt8_cpu.yaml", *data, out]

    def submit(self, stage: str, name: str, *more: str, code: int = 0) -> str:
        """Submit a run; returns what was printed."""
        profile = ["--profile", str(self.folder / "two_nodes.yaml")]
        done = subprocess.run(
            [sys.executable, "slurm/submit.py", *self.command(stage, name), *profile, *more],
            cwd=self.repository,
            env=self.slurm.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

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


def test_preempted_by_usr2_it_requeues_and_ends_as_if_undisturbed(
    runs: Runs, undisturbed: dict[str, str], slurm: Any
) -> None:
    job = number(runs.submit("ssl", "ssl_usr2"))
    runs.wait_for_step("ssl_usr2", 6)
    slurm("scancel", "--signal=USR2", job)
    slurm.hurry(job)
    assert runs.finish(job) == "COMPLETED", runs.logs()
    text = (runs.folder / "logs" / f"{job}_0_log.out").read_text()
    assert "continuing" in text
    assert differences(runs.last_checkpoint("ssl", "ssl_straight"), runs.last_checkpoint("ssl", "ssl_usr2")) == []
    straight, broken = (read_metrics(runs.folder / n / "metrics.jsonl", "train") for n in ("ssl_straight", "ssl_usr2"))
    assert straight == broken


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
