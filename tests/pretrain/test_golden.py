"""Stage 1 against numbers recorded from upstream DINOv2 (tests/golden/pretrain.json names the commit)."""

import hashlib
import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dinocell.models import VisionTransformer, ViTConfig
from dinocell.pretrain.build import make_optimizer
from dinocell.pretrain.config import (
    AugmentConfig,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimConfig,
    PretrainConfig,
    TeacherConfig,
)
from dinocell.pretrain.data.crops import Batch
from dinocell.pretrain.data.masking import batch_masks
from dinocell.pretrain.method.heads import DINOHead
from dinocell.pretrain.method.losses import (
    SoftmaxCenter,
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from dinocell.pretrain.method.step_values import values_at
from dinocell.pretrain.method.student_teacher import StudentTeacher
from dinocell.training.optim import clip_gradients, set_schedule
from dinocell.training.schedules import scaled_learning_rate

GOLDEN = Path(__file__).parents[1] / "golden"
BATCH, PROTOTYPES, LOCAL = 4, 32, 3


def _load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_fill", GOLDEN / "pretrain_fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill_module = _load_fill()
numbers, crops, fill = fill_module.numbers, fill_module.crops, fill_module.fill


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "pretrain.json").read_text())


@pytest.fixture(scope="module")
def losses(golden: dict[str, Any]) -> dict[str, Any]:
    return golden["losses"]


def test_sinkhorn_targets_equal_upstream(losses: dict[str, Any]) -> None:
    targets = sinkhorn_knopp(numbers("teacher", (2 * BATCH, PROTOTYPES)), 0.07)
    torch.testing.assert_close(targets, torch.tensor(losses["sinkhorn"]), rtol=1e-4, atol=1e-7)
    patches = sinkhorn_knopp(numbers("patch teacher", (13, PROTOTYPES)), 0.05)
    torch.testing.assert_close(patches, torch.tensor(losses["ibot_sinkhorn"]), rtol=1e-4, atol=1e-7)


def test_softmax_centre_equals_upstream(losses: dict[str, Any]) -> None:
    center = SoftmaxCenter(PROTOTYPES)
    scores = numbers("teacher", (2 * BATCH, PROTOTYPES))
    center(scores, 0.05)
    center.update()
    torch.testing.assert_close(center.center.flatten(), torch.tensor(losses["center"]))
    torch.testing.assert_close(center(scores, 0.05), torch.tensor(losses["softmax_centered"]))


def test_loss_terms_equal_upstream(losses: dict[str, Any]) -> None:
    targets = torch.tensor(losses["sinkhorn"]).unflatten(0, (2, BATCH))
    local = numbers("local", (LOCAL * BATCH, PROTOTYPES)).unflatten(0, (LOCAL, BATCH))
    both = numbers("global", (2 * BATCH, PROTOTYPES)).unflatten(0, (2, BATCH))
    assert float(dino_local_loss(local, targets)) == pytest.approx(losses["dino_local"], rel=1e-5)
    assert float(dino_global_loss(both, targets, LOCAL)) == pytest.approx(losses["dino_global"], rel=1e-5)
    weights = torch.tensor([1 / 5] * 5 + [1 / 7] * 7 + [1.0])
    patches = numbers("patch student", (13, PROTOTYPES))
    value = ibot_loss(patches, torch.tensor(losses["ibot_sinkhorn"]), weights, 2 * BATCH)
    assert float(value) == pytest.approx(losses["ibot"], rel=1e-5)
    assert float(koleo_loss(numbers("cls", (6, 24)))) == pytest.approx(losses["koleo"], rel=1e-5)


def test_head_forward_equals_upstream(golden: dict[str, Any]) -> None:
    head = DINOHead(48, 40, hidden=64, bottleneck=16)
    fill(head)
    torch.testing.assert_close(head(numbers("tokens", (3, 48))), torch.tensor(golden["head"]), rtol=1e-5, atol=1e-6)


def test_masks_equal_upstream_bit_for_bit(golden: dict[str, Any]) -> None:
    for record in golden["masking"]:
        grid = (record["grid"], record["grid"])
        masks = batch_masks(record["images"], grid, random.Random(record["seed"]))
        assert masks.sum(axis=(1, 2)).tolist() == record["counts"]
        flat = np.ascontiguousarray(masks.reshape(record["images"], -1))
        assert hashlib.sha256(flat.tobytes()).hexdigest()[:16] == record["sha256"]


def test_schedules_equal_upstream(golden: dict[str, Any]) -> None:
    config = PretrainConfig(
        output_dir="unused",
        data=DataConfig(root=("unused",)),
        optim=OptimConfig(epoch_steps=10),
        teacher=TeacherConfig(),
    )
    peak = scaled_learning_rate(config.optim.base_lr, 128, "sqrt_1024")
    recorded = golden["schedules"]
    assert peak == pytest.approx(recorded["peak_lr"])
    for step, expected in zip(recorded["steps"], recorded["values"], strict=True):
        v = values_at(config, peak, step)
        ours = [v.lr, v.last_layer_lr, v.weight_decay, v.momentum, v.temperature]
        assert ours == pytest.approx(expected, rel=1e-9), f"step {step}"


def _tiny_config() -> PretrainConfig:
    return PretrainConfig(
        output_dir="unused",
        model=ViTConfig(arch="vit_tiny", depth=2, image_size=48, in_channels=3, registers=2, drop_path=0.3),
        data=DataConfig(root=("unused",)),
        augment=AugmentConfig(global_size=48, local_size=24, local_crops=3),
        dino_head=HeadConfig(prototypes=48, hidden=32, bottleneck=24),
        ibot_head=HeadConfig(prototypes=48, hidden=32, bottleneck=16),
        loss=LossConfig(),
        optim=OptimConfig(layer_decay=0.9, patch_embed_multiplier=0.2),
    )


def _batch(step: int) -> Batch:
    masks = torch.from_numpy(np.random.RandomState(step).rand(6, 36) < 0.3)
    masks[[0, 4]] = False
    weights = 1 / masks.sum(dim=1, keepdim=True).clamp_min(1)
    return Batch(
        global_crops=crops(f"global{step}", (6, 1, 48, 48)),
        local_crops=crops(f"local{step}", (9, 1, 24, 24)),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        patch_weights=weights.expand_as(masks)[masks],
        paths=["", "", ""],
        unreadable={},
        failed=False,
    )


def test_three_training_steps_equal_upstream(golden: dict[str, Any]) -> None:
    """Every loss term, each submodule's gradient norm, and student and teacher after AdamW and EMA."""
    config = _tiny_config()
    model = StudentTeacher(VisionTransformer(config.model), config)
    fill(model.student)
    model.teacher.load_state_dict(model.student.state_dict())
    optimizer = make_optimizer(model, config)
    for step, expected in enumerate(golden["training_steps"]):
        set_schedule(optimizer, 1e-3, 0.04, 0.0 if step == 0 else 1e-3)
        optimizer.zero_grad()
        torch.manual_seed(step)
        output = model(_batch(step), 0.05)
        output.losses["loss"].backward()
        norms = {name: clip_gradients(part, 3.0) for name, part in model.student.items()}
        optimizer.step()
        model.update_teacher(0.9)
        for term in ("dino_local", "dino_global", "ibot", "koleo"):
            assert float(output.losses[term].detach()) == pytest.approx(expected[term], rel=1e-5, abs=1e-6), (
                step,
                term,
            )
        assert norms == pytest.approx(expected["grad_norms"], rel=1e-5), step
        for part, name in ((model.student, "student_sum"), (model.teacher, "teacher_sum")):
            assert sum(float(p.detach().double().abs().sum()) for p in part.parameters()) == pytest.approx(
                expected[name], rel=2e-7
            )
