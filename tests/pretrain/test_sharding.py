"""FSDP2 on two gloo ranks: the training of DDP, and checkpoints that load at any number of ranks."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dinocell.core import config as config_module
from dinocell.core.files import load_file
from dinocell.models import export_backbone
from dinocell.pretrain import PretrainConfig, run
from dinocell.training.progress import read_metrics

RECIPE: dict[str, Any] = {
    "model": {"arch": "vit_tiny", "depth": 2, "image_size": 32, "drop_path": 0.3, "registers": 1},
    "data": {"workers": 0},
    "augment": {"global_size": 32, "local_size": 16, "local_crops": 2},
    "dino_head": {"prototypes": 25, "hidden": 16, "bottleneck": 8},  # 25: the ranks' shares differ in size
    "ibot_head": {"prototypes": 25, "hidden": 16, "bottleneck": 8},
    "optim": {
        "epochs": 1,
        "epoch_steps": 4,
        "batch_size": 2,
        "base_lr": 0.003,
        "warmup_epochs": 0.25,
        "freeze_last_layer_epochs": 0.25,
    },
    "device": "cpu",
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 2,
    "keep_checkpoints": 9,
    "tensorboard": False,
}
ALONE = {"loss": {"ibot_weight": 0.0, "koleo_weight": 0.0}, "model": {"drop_path": 0.0}}  # what one rank can repeat
HARD = {
    "optim": {"accumulate": 2, "freeze_backbone_steps": 2},
    "loss": {"koleo_all_ranks": True},
    "monitor": {"every": 2, "best_by": "knn_source"},
}
RANK = """
import sys, torch
from dinocell.core import config
from dinocell.pretrain import PretrainConfig, run
module = sys.modules["dinocell.pretrain.trainer"]
module.matmul_rate = lambda *_: 1e11

def report(folder, settings, backbone, dtype):  # what the report needs: a whole network on rank 0 alone
    assert backbone(torch.zeros(1, 1, 32, 32))["x_norm_clstoken"].isfinite().all()
    return folder / "report.html"

module.write_report = report
for recipe in sys.argv[1:]:
    run(config.load(PretrainConfig, recipe))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder of runs: on two ranks by DDP and FSDP2, on one rank, and continued across the two."""
    folder = tmp_path_factory.mktemp("parallel")
    for index in range(8):
        noise = np.random.default_rng(index).normal(size=(60, 60))
        image = np.clip(128 + 200 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)
        source = folder / "images" / f"source{index % 2}"
        source.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(source / f"{index}.png"), image)
    run(recipe(folder, "one", ALONE, {"optim": {"batch_size": 4}}))
    two = {
        "ddp": (HARD,),
        "fsdp2": (HARD, {"parallel": "fsdp2"}),
        "ddp_bf16": ({"precision": "bfloat16"},),
        "fsdp2_bf16": ({"precision": "bfloat16", "parallel": "fsdp2"},),
        "fsdp2_alone": (ALONE, {"parallel": "fsdp2"}),
        "one_then_fsdp2": (ALONE, {"parallel": "fsdp2"}),
    }
    begin_like(folder, "one", "one_then_fsdp2")
    files = []
    for name, changes in two.items():
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(config_module.to_yaml(recipe(folder, name, *changes)))
    launch(folder, files, repository)
    begin_like(folder, "fsdp2_alone", "fsdp2_then_one")
    run(recipe(folder, "fsdp2_then_one", ALONE, {"optim": {"batch_size": 4}}))
    return folder


def recipe(folder: Path, name: str, *changes: dict[str, Any]) -> PretrainConfig:
    settings = json.loads(json.dumps(RECIPE)) | {"output_dir": str(folder / name)}
    settings["data"]["root"] = [str(folder / "images")]
    for change in changes:
        for key, value in change.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return config_module.from_dict(PretrainConfig, settings)


def begin_like(folder: Path, old: str, new: str) -> None:
    """As if `new` had been `old` until its checkpoint of step 2."""
    for path in (folder / old / "checkpoints").glob("step_00000002.pt*"):
        (folder / new / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / new / "checkpoints")
    shutil.copy(folder / old / "metrics.jsonl", folder / new)


def launch(folder: Path, recipes: list[Path], repository: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "rank.py").write_text(RANK)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **variables, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "rank.py"), *map(str, recipes)]
    ranks = [subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]


def compare(one: Path, other: Path, rel: float) -> None:
    rows = [read_metrics(out / "metrics.jsonl", "train") for out in (one, other)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for row, again in zip(*rows, strict=True):
        shared = [name for name in row if name in again and name.startswith(("loss", "dino", "ibot", "koleo", "grad"))]
        assert "loss" in shared and "grad_backbone" in shared
        for name in shared:
            assert row[name] == pytest.approx(again[name], rel=rel, abs=1e-6), (row["step"], name)


def weights(out: Path) -> dict[str, torch.Tensor]:
    state = load_file(out / "checkpoints" / "step_00000004.pt")
    assert state["student"].keys() == state["teacher"].keys()
    return {f"{part}.{name}": value for part in ("student", "teacher") for name, value in state[part].items()}


def test_fsdp2_trains_as_ddp_does(runs: Path) -> None:
    """With accumulation, a backbone frozen for two of four steps, drop path, and all losses."""
    compare(runs / "ddp", runs / "fsdp2", rel=1e-4)
    one, two = weights(runs / "ddp"), weights(runs / "fsdp2")
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)


def test_mixed_precision_rounds_what_it_rounds_without_fsdp2(runs: Path) -> None:
    """Gathered in bfloat16 are only the weights that autocast casts anyway: no more than the last digits differ."""
    compare(runs / "ddp_bf16", runs / "fsdp2_bf16", rel=1e-3)
    assert all(value.dtype == torch.float32 for value in weights(runs / "fsdp2_bf16").values())


@pytest.mark.parametrize("continued", ["fsdp2_then_one", "one_then_fsdp2"])
def test_a_checkpoint_loads_at_another_number_of_ranks(runs: Path, continued: str) -> None:
    compare(runs / "one", runs / "fsdp2_alone", rel=1e-3)
    compare(runs / "one", runs / continued, rel=1e-3)
    one, other = weights(runs / "one"), weights(runs / continued)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=name)


def test_its_teacher_is_probed_and_kept_as_any_other(runs: Path) -> None:
    probes = [read_metrics(runs / name / "metrics.jsonl", "probe") for name in ("ddp", "fsdp2")]
    assert probes[0] == probes[1] != []
    one, two = (load_file(runs / name / "checkpoints" / "best.pt")["teacher"] for name in ("ddp", "fsdp2"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_by_fsdp2_exports_as_any_other(runs: Path) -> None:
    assert export_backbone(runs / "fsdp2", to="backbone").is_file()
