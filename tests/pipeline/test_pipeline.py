"""The whole line through the scripts people run: curate, two-process stage 1, export, stage 2, evaluate, segment."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dinocell.datasets.synthetic.sample import write_sample
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.training.progress import read_metrics

pytestmark = pytest.mark.slow

SSL = [
    "model.arch=vit_tiny",
    "model.depth=2",
    "model.image_size=64",
    "augment.global_size=64",
    "augment.local_size=32",
    "augment.local_crops=2",
    "optim.epoch_steps=6",
    "optim.batch_size=2",
    "data.workers=1",
    "checkpoint_every=2",
    "log_every=1",
    "tensorboard=false",
]
FINETUNE = [
    "crop_size=64",
    "input_size=64",
    "overlap=16",
    "train.steps=8",
    "train.batch_size=2",
    "train.log_every=2",
    "train.checkpoint_every=2",
    "validate.times=1",
    "decoder.neck_width=32",
    "device=cpu",
]


def run(repository: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=repository, capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_sample(folder / "sample", n_unlabelled=6, n_train=4, n_val=2, n_test=2, size=128, seed=3)
    (folder / "sample" / "unlabelled" / "damaged.tif").write_bytes(b"II*\x00 this was an image once")
    return folder


@pytest.fixture(scope="module")
def crops(sample: Path, repository: Path) -> Path:
    done = run(repository, "data_curation/curate.py", str(sample / "sample/unlabelled"), "--out", str(sample / "crops"))
    assert "damaged.tif" in (sample / "crops" / "rejected.csv").read_text()
    assert "crops" in done.stdout
    return sample / "crops"


@pytest.fixture(scope="module")
def backbone(sample: Path, crops: Path, repository: Path) -> Path:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    recipe = ["ssl/train.py", "--config", "ssl/configs/vitt8_cpu.yaml", f"data.root={crops}"]
    run(repository, *launch, *recipe, f"output_dir={sample / 'adapt'}", *SSL)
    run(repository, "ssl/export_backbone.py", str(sample / "adapt"))
    return sample / "adapt" / "backbone.safetensors"


@pytest.fixture(scope="module")
def model(sample: Path, backbone: Path, repository: Path) -> Path:
    recipe = ["finetune/train.py", "--config", "finetune/configs/vitt8_cpu.yaml"]
    data = [f"data.root={sample / 'sample/labelled'}", f"output_dir={sample / 'finetune'}"]
    run(repository, *recipe, *data, f"backbone.weights={backbone}", *FINETUNE)
    return sample / "finetune" / "model"


def test_every_image_is_a_crop_or_rejected_with_a_reason(sample: Path, crops: Path) -> None:
    with (crops / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (crops / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    names = {Path(row["source"]).name for row in rows + rejected}
    assert names == {p.name for p in (sample / "sample/unlabelled").iterdir()}
    wanted = "crop,source,source_sha256,dataset,modality,channel,y,x,height,width,laplacian_variance,status"
    assert list(rows[0])[:12] == wanted.split(",")
    assert all(row["reason"] for row in rejected)
    for row in rows:
        crop = read_image(crops / row["crop"]).array
        assert crop.dtype == np.uint8
        assert crop.shape == (int(row["height"]), int(row["width"]))


def test_stage_one_leaves_what_others_rely_on(sample: Path, backbone: Path) -> None:
    folder = sample / "adapt"
    for name in ("config.yaml", "metrics.jsonl", "checkpoints", "report.html", "backbone.safetensors", "backbone.json"):
        assert (folder / name).exists(), name
    description = json.loads((folder / "backbone.json").read_text())
    assert "vit_tiny" in json.dumps(description)
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl", "train")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_stage_two_leaves_a_model_that_segments(sample: Path, model: Path, repository: Path) -> None:
    out = sample / "evaluation"
    run(repository, "finetune/evaluate.py", str(model), str(sample / "sample/labelled"), "--out", str(out))
    scores = json.loads((out / "evaluation.json").read_text())
    assert scores["images"] == 2
    assert {"SEG", "DET", "MMA", "AP50", "AP75", "AP90", "PQ"} <= set(scores["metrics"])
    assert "metrics_ignore_masked" in scores
    images = sample / "sample/labelled/test/images"
    (sample / "mixed").mkdir()
    for path in images.iterdir():
        (sample / "mixed" / path.name).write_bytes(path.read_bytes())
    (sample / "mixed" / "broken.png").write_bytes(b"\x89PNG cut")
    segment = ["-m", "dinocell", "segment", str(sample / "mixed"), "--out", str(sample / "segmented")]
    done = run(repository, *segment, "--model", str(model), "--save", "labels,overlay", code=1)
    assert "broken.png" in done.stdout + done.stderr
    for path in images.iterdir():
        labels = read_labels(sample / "segmented" / f"{path.stem}_labels.tif")
        assert labels.shape == read_labels(path.parent.parent / "masks" / path.name).shape


def test_stage_one_killed_and_run_again_is_the_undisturbed_run(sample: Path, crops: Path, repository: Path) -> None:
    recipe = ["ssl/train.py", "--config", "ssl/configs/vitt8_cpu.yaml", f"data.root={crops}", *SSL]
    run(repository, *recipe, f"output_dir={sample / 'straight'}")
    kill_after_first_checkpoint(repository, [*recipe, f"output_dir={sample / 'killed'}"], sample / "killed")
    run(repository, *recipe, f"output_dir={sample / 'killed'}")
    straight, killed = (read_metrics(sample / name / "metrics.jsonl", "train") for name in ("straight", "killed"))
    assert killed == straight


def test_stage_two_killed_and_run_again_ends_with_the_same_loss(
    sample: Path, backbone: Path, model: Path, repository: Path
) -> None:
    recipe = ["finetune/train.py", "--config", "finetune/configs/vitt8_cpu.yaml"]
    command = [*recipe, f"data.root={sample / 'sample/labelled'}", f"backbone.weights={backbone}", *FINETUNE]
    folder = sample / "finetune_killed"
    kill_after_first_checkpoint(repository, [*command, f"output_dir={folder}"], folder)
    run(repository, *command, f"output_dir={folder}")
    straight, killed = (read_metrics(f / "metrics.jsonl", "train") for f in (sample / "finetune", folder))
    assert [row["step"] for row in killed] == [row["step"] for row in straight]
    np.testing.assert_allclose([row["loss"] for row in killed], [row["loss"] for row in straight], rtol=1e-6)


def kill_after_first_checkpoint(repository: Path, command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=repository,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/step_*.pt.sha256")):
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["ssl/train.py", "data.root=/absent/folder", "output_dir={out}"], 2, ["/absent/folder"]),
        (["ssl/train.py", "data.rot=x", "output_dir={out}"], 2, ["data.rot", "data.root"]),
        (["finetune/train.py", "data.root=/absent/folder", "output_dir={out}"], 2, ["/absent/folder"]),
        (["finetune/train.py", "--config", "absent.yaml"], 2, ["absent.yaml"]),
        (["ssl/train.py", "data.root={crops}", "output_dir={out}", "weights={bad}"], 1, ["bad.pth"]),
        (["ssl/export_backbone.py", "/absent/run"], 2, ["/absent/run"]),
        (["data_curation/curate.py", "/absent/folder", "--out", "{out}"], 2, ["/absent/folder"]),
        (["-m", "dinocell", "segment", "/absent.tif", "--out", "{out}", "--model", "/absent"], 2, ["/absent"]),
        (["slurm/submit.py", "sl"], 2, ["sl", "ssl"]),
    ],
)
def test_a_mistake_is_one_clear_line(
    command: list[str], code: int, words: list[str], sample: Path, crops: Path, repository: Path
) -> None:
    (sample / "bad.pth").write_bytes(b"no weights")
    filled = [part.format(out=sample / "none", crops=crops, bad=sample / "bad.pth") for part in command]
    done = run(repository, *filled, code=code)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


def test_slurm_dry_run_prints_the_script(crops: Path, repository: Path, tmp_path: Path) -> None:
    submit = ["slurm/submit.py", "ssl", "--profile", "slurm/profiles/8gpu.yaml", "--dry-run"]
    recipe = ["--config", "ssl/configs/vitb8_microscopy.yaml", f"data.root={crops}", f"output_dir={tmp_path}"]
    script = run(repository, *submit, *recipe, "profile.partition=long").stdout
    for line in ("#SBATCH --partition=long", "#SBATCH --gpus-per-node=8", "#SBATCH --signal=USR2@180", "srun"):
        assert line in script
