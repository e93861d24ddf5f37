"""submitit's local executor, for machines without SLURM: the same jobs, the same requeue, the same results."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dinocell import pretrain
from dinocell.cli.stages import STAGES
from dinocell.cli.train.pretrain import parse
from dinocell.cluster import submit
from dinocell.core.files import load_file
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.training.progress import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SSL = [
    "model.depth=1",
    "model.image_size=32",
    "dino_head.prototypes=32",
    "ibot_head.prototypes=32",
    "augment.global_size=32",
    "augment.local_size=16",
    "optim.epoch_steps=16",
    "optim.batch_size=2",
    "data.workers=0",
    "log_every=1",
    "tensorboard=false",
    "device=cpu",
]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_preempted_local_job_starts_again_and_ends_as_the_plain_script(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(tmp_path / "sample", n_unlabelled=3, n_train=0, n_val=0, n_test=0, size=64, seed=2)
    monkeypatch.chdir(repository)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    recipe = ["--config", "ssl/configs/vitt8_cpu.yaml", f"data.root={tmp_path / 'sample/unlabelled'}", *SSL]
    pretrain.run(parse([*recipe, f"output_dir={tmp_path / 'plain'}"]))

    line = ["ssl", *recipe, f"output_dir={tmp_path / 'local'}", "--local", f"profile.folder={tmp_path}/logs"]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(submit.main, STAGES, line)
        deadline = time.monotonic() + 90
        while not any(row["step"] >= 3 for row in read_metrics(tmp_path / "local" / "metrics.jsonl")):
            assert not job.done() and time.monotonic() < deadline
            time.sleep(0.05)
        number = next((tmp_path / "logs").glob("*_submitted.pkl")).name.split("_")[0]
        (task,) = children(int(number))
        os.kill(task, signal.SIGUSR2)
        assert job.result(timeout=120) == 0
    assert "continuing" in (tmp_path / "logs" / f"{number}_0_log.out").read_text()
    last = [load_file(tmp_path / name / "checkpoints" / "step_00000016.pt") for name in ("plain", "local")]
    for part in ("student", "teacher"):
        for name, weights in last[0][part].items():
            assert torch.equal(weights, last[1][part][name]), name
    assert read_metrics(tmp_path / "plain/metrics.jsonl", "train") == read_metrics(
        tmp_path / "local/metrics.jsonl", "train"
    )
