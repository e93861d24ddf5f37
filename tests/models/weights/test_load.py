"""Loading every layout; names, shapes and outputs recorded by tests/golden/models_layouts_generate.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import sha256_of
from dinocell.models import LoadReport, VisionTransformer, ViTConfig, load_backbone, save_backbone
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD
from dinocell.training.checkpoint import CheckpointManager

RECORDED = json.loads((Path(__file__).parents[2] / "golden" / "models_layouts.json").read_text())
LAYOUTS: dict[str, dict[str, list[int]]] = RECORDED["layouts"]
SIDE: int = RECORDED["image_side"]
State = dict[str, Tensor]


@pytest.fixture
def stored(fill: Any) -> Any:
    def state(layout: str) -> State:
        return {name: fill.value(name, tuple(shape)) for name, shape in LAYOUTS[layout].items()}

    return state


def report_of(model: VisionTransformer) -> LoadReport:
    assert isinstance(model.load_report, LoadReport)
    return model.load_report


def normalised(gray: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (gray - mean) / std


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_tokens_of_its_own_software(
    layout: str, stored: Any, tmp_path: Path, golden: Path, fill: Any, tokens: Any, worst: Any
) -> None:
    if layout.startswith(("hf", "timm")):
        path = tmp_path / layout
        path.mkdir()
        save_file(stored(layout), path / "model.safetensors")
    else:
        path = tmp_path / f"{layout}.pth"
        torch.save(stored(layout), path)
    model = load_backbone(path).eval()
    expected = torch.from_numpy(np.load(golden / "models_layouts.npz")[layout])
    with torch.no_grad():
        assert worst(tokens(model(fill.image((1, 3, SIDE, SIDE)))), expected) < 1e-5
    has_registers = "reg4" in layout
    assert model.config.registers == (4 if has_registers else 0)
    assert (model.config.interpolate_offset, model.config.interpolate_antialias) == (
        (0.0, True) if has_registers else (0.1, False)
    )
    report = report_of(model)
    without_mask = layout.startswith("timm") or layout == "dino_v1"
    gammas = 8 if layout == "dino_v1" else 0
    assert len(report.missing) == int(without_mask) + gammas and not report.unexpected
    assert report.sha256 == sha256_of(report.file)


def wrapped(kind: str, teacher: State, student: State) -> dict[str, Any]:
    head = torch.zeros(3, 192)
    match kind:
        case "dinobloom":
            return {"teacher": {f"backbone.{k}": v for k, v in teacher.items()} | {"dino_head.last_layer.weight": head}}
        case "dinov2 training":
            both = {f"student.backbone.{k}": v for k, v in student.items()}
            both |= {f"teacher.backbone.{k}": v for k, v in teacher.items()} | {"student.ibot_head.mlp.0.weight": head}
            return {"model": both, "iteration": 24_799, "optimizer": {"state": {0: {"exp_avg": head}}}}
        case "dino v1 full":
            full: dict[str, Any] = {"student": {f"module.backbone.{k}": v for k, v in student.items()}, "epoch": 3}
            full["args"] = argparse.Namespace(arch="vit_small")
            return full | {"teacher": {f"backbone.{k}": v for k, v in teacher.items()}}
        case "compiled":
            return {"model": {f"_orig_mod.module.{k}": v for k, v in teacher.items()}}
        case _:
            raise ValueError(kind)


@pytest.mark.parametrize("kind", ["dinobloom", "dinov2 training", "dino v1 full", "compiled"])
def test_the_teacher_is_found_inside_training_checkpoints(kind: str, stored: Any, tmp_path: Path) -> None:
    layout = {"dinov2 training": "dinov2_chunked", "dino v1 full": "dino_v1"}.get(kind, "dinov2")
    teacher = stored(layout)
    student = {name: torch.zeros_like(value) for name, value in teacher.items()}
    torch.save(wrapped(kind, teacher, student), tmp_path / "checkpoint.pth")
    model = load_backbone(tmp_path / "checkpoint.pth")
    torch.testing.assert_close(model.patch_embed.proj.weight, teacher["patch_embed.proj.weight"], rtol=0, atol=0)
    last = "blocks.1.3." if layout == "dinov2_chunked" else "blocks.3."
    torch.testing.assert_close(model.blocks[3].attn.qkv.weight, teacher[f"{last}attn.qkv.weight"], rtol=0, atol=0)


def small(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"arch": "vit_tiny", "depth": 1, "image_size": 32, "layerscale_init": 0.5}
    return VisionTransformer(ViTConfig(**(fields | changes))).eval()


def test_a_run_gives_its_best_teacher_else_the_newest_whole_one(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "checkpoints", keep=3)
    models = [small(image_size=32 + 8 * step) for step in range(3)]
    for step, model in enumerate(models):
        config = {"model": {"registers": 0, "interpolate_offset": 0.0, "interpolate_antialias": True}}
        state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
        newest = manager.save(step, {"teacher": state, "config": config})
    newest.write_bytes(newest.read_bytes()[:1000])
    loaded = load_backbone(tmp_path, in_channels=None)
    assert loaded.config.image_size == 40
    assert (loaded.config.interpolate_offset, loaded.config.interpolate_antialias) == (0.0, True)
    manager.save_best(0, {"teacher": {f"backbone.{name}": v for name, v in models[0].state_dict().items()}})
    assert load_backbone(tmp_path, in_channels=None).config.image_size == 32
    save_backbone(tmp_path, models[1], {})  # exported by an earlier part of the run: its checkpoints are newer
    assert load_backbone(tmp_path, in_channels=None).config.image_size == 32


def test_own_file_gives_back_the_same_model_and_says_where_it_comes_from(tmp_path: Path) -> None:
    model = small(registers=4, interpolate_antialias=False, interpolate_offset=0.05, layerscale_init=1e-5)
    file = save_backbone(tmp_path, model, {"parent_sha256": "abc"})
    again = load_backbone(file, in_channels=None)
    assert again.config == model.config
    for name, value in model.state_dict().items():
        if name != "mask_token":
            assert torch.equal(value, again.state_dict()[name]), name
    about = json.loads((tmp_path / "backbone.json").read_text())
    assert (about["arch"], about["patch_size"], about["image_size"], about["registers"]) == ("vit_tiny", 8, 32, 4)
    assert about["parent_sha256"] == "abc" and "gray" in about["normalisation"]["input"]
    assert load_backbone(tmp_path, in_channels=1).config.image_size == 32


@pytest.mark.parametrize("patch", [14, 8])
def test_gray_loading_gives_the_tokens_of_the_normalised_rgb_image(
    patch: int, stored: Any, tmp_path: Path, tokens: Any, worst: Any
) -> None:
    torch.save(stored("dinov2_reg4"), tmp_path / "w.pth")
    rgb = load_backbone(tmp_path / "w.pth", patch_size=patch).eval()
    gray = load_backbone(tmp_path / "w.pth", patch_size=patch, in_channels=1).eval()
    image = torch.rand(2, 1, 5 * patch, 4 * patch)
    with torch.no_grad():
        assert worst(tokens(gray(image)), tokens(rgb(normalised(image)))) < 1e-5


def test_own_gray_weights_resize_like_their_rgb_form(tmp_path: Path) -> None:
    """Gray 8→16 equals spreading to RGB first, resizing there, and folding back."""
    save_backbone(tmp_path / "gray", small(), {})
    direct = load_backbone(tmp_path / "gray", patch_size=16, in_channels=1)
    save_backbone(tmp_path / "rgb", load_backbone(tmp_path / "gray", in_channels=3), {})
    around = load_backbone(tmp_path / "rgb", patch_size=16, in_channels=1)
    torch.testing.assert_close(direct.patch_embed.proj.weight, around.patch_embed.proj.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(direct.patch_embed.proj.bias, around.patch_embed.proj.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["dinov2", "dinov2_reg4"])
def test_stored_positions_are_those_the_original_grid_interpolates_to(layout: str, stored: Any, tmp_path: Path) -> None:
    torch.save(stored(layout), tmp_path / "w.pth")
    original = load_backbone(tmp_path / "w.pth", patch_size=8)
    resized = load_backbone(tmp_path / "w.pth", patch_size=8, image_size=72)
    assert original.config.grid == 4 and resized.config.grid == 9
    torch.testing.assert_close(resized.pos_embed, original.positions(72, 72))
    assert any("4×4→9×9" in line for line in report_of(resized).resized)
    assert any("14→8" in line for line in report_of(resized).resized)


def test_zero_mask_token_is_drawn_alike_everywhere_and_said(stored: Any, tmp_path: Path) -> None:
    state = stored("dinov2")
    state["mask_token"].zero_()
    torch.save(state, tmp_path / "w.pth")
    first, second = load_backbone(tmp_path / "w.pth"), load_backbone(tmp_path / "w.pth")
    assert torch.equal(first.mask_token, second.mask_token)
    assert float(first.mask_token.detach().std()) == pytest.approx(0.02, rel=0.25)
    assert any("mask_token was all zeros" in note for note in report_of(first).notes)
    state["mask_token"].fill_(0.5)
    torch.save(state, tmp_path / "w.pth")
    assert float(load_backbone(tmp_path / "w.pth").mask_token.detach().min()) == 0.5


def test_a_classifier_head_is_reported_as_unexpected(stored: Any, tmp_path: Path) -> None:
    torch.save(stored("dinov2") | {"head.weight": torch.zeros(2, 192)}, tmp_path / "w.pth")
    assert report_of(load_backbone(tmp_path / "w.pth")).unexpected == ("head.weight",)


def _broken(kind: str, folder: Path, state: State) -> Path:
    path = folder / ("w.safetensors" if "safetensors" in kind else "w.pth")
    match kind:
        case "missing":
            return folder / "nowhere.pth"
        case "truncated pth":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "truncated safetensors":
            save_file(state, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "other network":
            torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, path)
        case "code":
            torch.save({"model": Path("object")}, path)
        case "one shard":
            torch.save({k: v for k, v in state.items() if not k.startswith("blocks.1.")}, path)
        case "a tensor short":
            torch.save({k: v for k, v in state.items() if k != "blocks.2.mlp.fc1.bias"}, path)
        case "unknown width":
            torch.save(state | {"cls_token": torch.zeros(1, 1, 200)}, path)
        case "wrong shape":
            torch.save(state | {"norm.weight": torch.zeros(7)}, path)
        case "empty folder":
            return folder
        case "text":
            path.write_text("<html>not found</html>")
    return path


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("missing", "no such file"),
        ("truncated pth", "cannot be read"),
        ("truncated safetensors", "not a readable safetensors"),
        ("other network", "layer1.0.conv1.weight"),
        ("code", "cannot be read"),
        ("one shard", r"blocks \[0, 2, 3\]"),
        ("a tensor short", "blocks.2.mlp.fc1.bias"),
        ("unknown width", "200"),
        ("wrong shape", "norm.weight"),
        ("empty folder", "backbone.safetensors"),
        ("text", "cannot be read"),
    ],
)
def test_unusable_weights_are_one_line_naming_the_path(kind: str, hint: str, stored: Any, tmp_path: Path) -> None:
    path = _broken(kind, tmp_path, stored("dinov2"))
    with pytest.raises(ConfigError if kind == "missing" else CheckpointError, match=hint) as caught:
        load_backbone(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
