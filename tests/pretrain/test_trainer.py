"""Whole runs of a tiny model on CPU: what they leave behind, and that no interruption changes the result."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dinocell import models
from dinocell.core import config as config_module
from dinocell.core.errors import EXIT_STOPPED, CheckpointError, ConfigError, DataError
from dinocell.core.files import load_file
from dinocell.pretrain import PretrainConfig, run
from dinocell.pretrain.method.student_teacher import Output, StudentTeacher
from dinocell.pretrain.trainer import Trainer
from dinocell.training.progress import read_metrics

RECIPE: dict[str, Any] = {
    "model": {"arch": "vit_tiny", "depth": 1, "image_size": 32, "drop_path": 0.3},
    "data": {"workers": 0},
    "augment": {"global_size": 32, "local_size": 16, "local_crops": 2},
    "dino_head": {"prototypes": 24, "hidden": 16, "bottleneck": 8},
    "ibot_head": {"prototypes": 24, "hidden": 16, "bottleneck": 8},
    "teacher": {"temperature_warmup_epochs": 0.5},
    "optim": {
        "epochs": 1,
        "epoch_steps": 8,
        "batch_size": 2,
        "base_lr": 0.01,
        "warmup_epochs": 0.25,
        "freeze_last_layer_epochs": 0.125,
    },
    "device": "cpu",
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 3,
    "tensorboard": False,
}


NUMBERS = ("loss", "dino_local", "dino_global", "ibot", "koleo", "grad_backbone", "grad_dino_head", "rankme_patch")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(5):
        noise = np.random.default_rng(index).normal(size=(60, 60))
        image = np.clip(128 + 200 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longer than these runs themselves; `straight` is made with everything."""
    module = sys.modules[Trainer.__module__]  # `dinocell.pretrain.trainer` names the function
    monkeypatch.setattr(module, "matmul_rate", lambda *_: 1e11)
    monkeypatch.setattr(module, "write_report", lambda folder, *_: folder / "report.html")


def make(images: Path, out: Path, **changes: Any) -> PretrainConfig:
    """The tiny recipe with dotted changes, `optim__batch_size=1`."""
    recipe = json.loads(json.dumps(RECIPE)) | {"output_dir": str(out)}
    recipe["data"]["root"] = [str(images)]
    for key, value in changes.items():
        *groups, last = key.split("__")
        target = recipe
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = value
    return config_module.from_dict(PretrainConfig, recipe)


def lines(out: Path) -> list[dict[str, Any]]:
    return read_metrics(out / "metrics.jsonl", "train")


def final(out: Path) -> dict[str, Any]:
    return load_file(sorted((out / "checkpoints").glob("step_*.pt"))[-1])


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(make(images, tmp_path_factory.mktemp("runs") / "straight")).folder


def test_a_run_leaves_what_others_rely_on(straight: Path, images: Path) -> None:
    resolved = config_module.load(PretrainConfig, straight / "config.yaml")
    assert resolved == make(images, straight)
    assert "<html" in (straight / "report.html").read_text()
    rows = lines(straight)
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        terms = [row[name] for name in ("dino_local", "dino_global", "ibot", "koleo")]
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-5), "the loss is the sum of what is logged"
        assert 0 <= row["teacher_entropy"] <= math.log(24) + 1e-5
        assert row["rankme_cls"] >= 1 and row["rankme_patch"] >= 1
        assert row["skipped_steps"] == 0 and row["unreadable_images"] == 0
    assert all("images_per_second" in row for row in read_metrics(straight / "metrics.jsonl", "timing"))


def test_the_teacher_exports_as_a_backbone(straight: Path, tmp_path: Path) -> None:
    path = models.export_backbone(straight, to="backbone", out=tmp_path / "backbone.safetensors")
    backbone = models.load_backbone(path, in_channels=1)
    teacher = final(straight)["teacher"]
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, teacher[f"backbone.{name}"], rtol=0, atol=0)


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs end before this step as if killed."""
    original = Trainer.train_step

    def train_step(self: Trainer, *args: Any) -> dict[str, float]:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_crash_changes_nothing(straight: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step past the last checkpoint is lost and repeated, here with another number of workers."""
    crash_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(make(images, tmp_path))
    assert len(lines(tmp_path)) == 5
    monkeypatch.undo()
    run(make(images, tmp_path, data__workers=2))
    assert lines(tmp_path) == lines(straight)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2], ids=lambda n: n.name)
def test_signals_to_the_whole_job_and_the_same_command_again(
    straight: Path, images: Path, tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    """As `kill -9` and as cluster managers send them: to the training process and its data workers at once."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(config_module.to_yaml(make(images, out, checkpoint_every=100, data__workers=2)))
    command = [sys.executable, str(repository / "ssl" / "train.py"), "--config", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(lines(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, number)
        code = process.wait(timeout=120)
    if number != signal.SIGKILL:
        assert code == EXIT_STOPPED and final(out)["step"] == len(lines(out)) >= 3, "saved where it stopped"
    run(make(images, out))
    assert lines(out) == lines(straight)


def _poison(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """Make the loss of some steps NaN."""
    forward, calls = StudentTeacher.forward, iter(range(1000))

    def poisoned(self: StudentTeacher, *args: Any) -> Output:
        output = forward(self, *args)
        if next(calls) in steps:
            output.losses["loss"] = output.losses["loss"] * math.nan
        return output

    monkeypatch.setattr(StudentTeacher, "forward", poisoned)


def test_a_nan_step_is_skipped_and_its_files_are_kept(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, (2,))
    run(make(images, tmp_path, checkpoint_every=1, keep_checkpoints=9, loss__centering="softmax"))
    assert [row["skipped_steps"] for row in lines(tmp_path)] == [0, 0] + [1] * 6
    before, after = (load_file(tmp_path / "checkpoints" / f"step_{step:08d}.pt") for step in (2, 3))
    for part in ("student", "teacher", "centers"):
        assert all(torch.equal(before[part][name], value) for name, value in after[part].items())
    assert all(torch.isfinite(value).all() for value in final(tmp_path)["student"].values())
    record = json.loads((tmp_path / "skipped_steps.jsonl").read_text())
    assert record["step"] == 3 and len(record["files"]) == 2 and "loss" in record["not_finite"]


def test_too_many_nan_steps_stop_the_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, tuple(range(1000)))
    with pytest.raises(DataError, match="3 steps had a NaN"):
        run(make(images, tmp_path, max_bad_steps=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__batch_size": 1},
        {"optim__accumulate": 2, "loss__centering": "softmax"},
        {"augment__local_crops": 0, "model__in_channels": 3, "model__registers": 2},
        {"loss__ibot_weight": 0.0},
        {"loss__dino_weight": 0.0, "loss__koleo_weight": 0.0},
    ],
    ids=["batch 1", "accumulation, softmax", "no local crops, RGB, registers", "no iBOT", "iBOT alone"],
)
def test_variants_train(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run(make(images, tmp_path, optim__epoch_steps=4, **changes))
    rows = lines(tmp_path)
    assert len(rows) == 4 and all(math.isfinite(row["loss"]) for row in rows)
    state = final(tmp_path)
    assert state["samples"] == 4 * 2 * changes.get("optim__accumulate", 1) / (
        2 if "optim__batch_size" in changes else 1
    )
    moved = [not torch.equal(value, state["teacher"][name]) for name, value in state["student"].items()]
    assert any(moved), "the student has learnt, the teacher lags behind"


def test_the_gram_anchor_is_the_start_and_survives_a_crash(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loss__gram_weight": 2.0, "mask__probability": 0.25, "model__drop_path": 0.0}
    run(make(images, tmp_path / "whole", **changes))
    rows = lines(tmp_path / "whole")
    assert rows[0]["gram"] < 1e-9 < rows[-1]["gram"]  # the student is the anchor at first and then leaves it
    crash_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(make(images, tmp_path / "cut", **changes))
    monkeypatch.undo()
    run(make(images, tmp_path / "cut", **changes))
    assert lines(tmp_path / "cut") == rows


def test_recomputing_activations_changes_nothing(straight: Path, images: Path, tmp_path: Path) -> None:
    """Drop path's random subsets are drawn again alike."""
    run(make(images, tmp_path, activation_checkpointing=True))
    for row, other in zip(lines(straight), lines(tmp_path), strict=True):
        assert [row[name] for name in NUMBERS] == pytest.approx([other[name] for name in NUMBERS], rel=1e-4)


def test_another_number_of_ranks_continues_the_samples(images: Path, tmp_path: Path) -> None:
    """Here another micro-batch: the stream goes on at the sample where it stopped."""
    run(make(images, tmp_path, optim__epoch_steps=3))
    assert final(tmp_path)["samples"] == 6
    run(make(images, tmp_path, optim__epoch_steps=5, optim__batch_size=3))
    assert final(tmp_path)["samples"] == 6 + 2 * 3


def test_frozen_parts_do_not_move(images: Path, tmp_path: Path) -> None:
    changes = {"optim__freeze_backbone_steps": 3, "optim__freeze_last_layer_epochs": 0.5}
    run(make(images, tmp_path, checkpoint_every=1, keep_checkpoints=9, **changes))
    states = {step: load_file(tmp_path / "checkpoints" / f"step_{step:08d}.pt")["student"] for step in (1, 3, 4, 8)}

    def same(first: int, second: int, part: str) -> bool:
        names = [name for name in states[1] if part in name]
        return all(torch.equal(states[first][name], states[second][name]) for name in names)

    assert same(1, 3, "backbone.") and not same(3, 8, "backbone.")
    assert same(1, 4, "last_layer.") and not same(4, 8, "last_layer.")
    assert not same(1, 3, "dino_head.mlp")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_train_like_one(images: Path, tmp_path: Path, repository: Path) -> None:
    """2 × 2 images on two gloo ranks against 1 × 4: DINO with Sinkhorn couples the ranks, gradients are averaged."""
    changes = {"loss__ibot_weight": 0.0, "loss__koleo_weight": 0.0, "model__drop_path": 0.0, "optim__epoch_steps": 4}
    run(make(images, tmp_path / "one", optim__batch_size=4, **changes))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_module.to_yaml(make(images, tmp_path / "two", optim__batch_size=2, **changes)))
    train = [sys.executable, str(repository / "ssl" / "train.py"), "--config", str(recipe)]
    rendezvous = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }  # torchrun's variables
    environment = {**os.environ, **rendezvous, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen(train, env={**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert one["samples"] == two["samples"] == 16
    for row, other in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in (
            "dino_local",
            "dino_global",
            "grad_backbone",
            "grad_dino_head",
            "rankme_cls",
            "rankme_patch",
            "lr",
        ):
            assert row[name] == pytest.approx(other[name], rel=1e-3), (row["step"], name)
    for name, value in one["teacher"].items():
        torch.testing.assert_close(value, two["teacher"][name], rtol=1e-3, atol=1e-4)


def test_errors_are_one_line_with_the_remedy(images: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"global_size: .* not a multiple of model.patch_size=8; use 504"):
        make(images, tmp_path, augment__global_size=508)
    with pytest.raises(ConfigError, match="no such file, folder or pattern"):
        run(make(images / "absent", tmp_path))
    with pytest.raises(CheckpointError):
        run(make(images, tmp_path, weights=str(images / "0.png")))
    with pytest.raises(ConfigError, match="contains a run with"):
        run(make(images, straight, model__arch="vit_small"))
    with pytest.raises(ConfigError, match=r"contains a run with dino_head.prototypes=24 \(now 32\); set it back"):
        run(make(images, straight, dino_head__prototypes=32))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.betas", [0.8, 0.99]),
        ("optim.layer_decay", 0.5),
        ("optim.patch_embed_multiplier", 1.0),
        ("weights", "other.pth"),
        ("model.depth", 2),
        ("model.registers", 4),
        ("loss.gram_weight", 1.0),
        ("augment.local_crops", 3),
    ],
)
def test_a_resumed_run_refuses_what_it_could_not_apply(
    images: Path, straight: Path, tmp_path: Path, key: str, value: object
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    before = (out / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=rf"contains a run with {re.escape(key)}=.* \(now {re.escape(str(value))}\)"):
        run(make(images, out, **{"optim__epochs": 2, key.replace(".", "__"): value}))
    assert (out / "config.yaml").read_text() == before


def test_a_finished_run_is_continued_with_more_epochs_and_another_rate(
    images: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    with pytest.raises(ConfigError, match=r"optim.base_lr=0.01 \(now 0.02\), and no step is left"):
        run(make(images, out, optim__base_lr=0.02))
    with pytest.raises(ConfigError, match=r"optim.epochs: .* has made 8; give at least 1"):
        run(make(images, out, optim__epochs=0.5))
    run(make(images, out, optim__epochs=2, optim__base_lr=0.02, log_every=2))
    assert "optim.epochs 1.0 → 2.0, optim.base_lr 0.01 → 0.02" in capsys.readouterr().err
    rows = {row["step"]: row for row in lines(out)}
    assert max(rows) == 16 and rows[8]["lr"] == lines(straight)[-1]["lr"]
    run(make(images, tmp_path / "whole", optim__epochs=2, optim__base_lr=0.02))
    for row in lines(tmp_path / "whole")[8:]:  # the schedule is that of a run of this length from the start
        if row["step"] in rows:
            assert rows[row["step"]]["lr"] == pytest.approx(row["lr"])
    optim = config_module.load(PretrainConfig, out / "config.yaml").optim
    assert (optim.epochs, optim.base_lr) == (2, 0.02)
    run(config_module.load(PretrainConfig, out / "config.yaml"))  # the resolved config is the run's own


def test_the_best_teacher_by_another_measure_is_set_aside(images: Path, tmp_path: Path) -> None:
    watched = {"monitor__every": 4, "monitor__best_by": "rankme_patch", "monitor__patience": 9}
    run(make(images, tmp_path, **watched))
    first = load_file(tmp_path / "checkpoints" / "best.pt")
    run(make(images, tmp_path, **{**watched, "monitor__best_by": "rankme_cls"}, optim__epochs=2))
    assert load_file(tmp_path / "checkpoints" / "best_before.pt")["step"] == first["step"]
    best = load_file(tmp_path / "checkpoints" / "best.pt")
    assert best["step"] > 8 and best["config"]["monitor"]["best_by"] == "rankme_cls"
    assert final(tmp_path)["best"]["measure"] == {"name": "rankme_cls"}


def test_weights_of_another_architecture_are_refused(images: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contain a vit_tiny, .* asks for vit_small; set model\.arch=vit_tiny"):
        run(make(images, tmp_path, weights=str(straight), model__arch="vit_small"))


def test_a_finished_run_can_start_another(images: Path, straight: Path, tmp_path: Path) -> None:
    run(make(images, tmp_path, weights=str(straight), optim__epoch_steps=1, optim__warmup_epochs=0))
    start, teacher = final(tmp_path)["teacher"], final(straight)["teacher"]
    for name, value in start.items():
        if name.startswith("backbone."):
            torch.testing.assert_close(value, teacher[name], rtol=0.05, atol=0.01)
    assert dataclasses.asdict(config_module.load(PretrainConfig, tmp_path / "config.yaml"))["weights"] == str(straight)
