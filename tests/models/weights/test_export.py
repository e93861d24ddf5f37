"""Exports against the names recorded from other software, and, where that is installed, against itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinocell.core.errors import ConfigError
from dinocell.models import VisionTransformer, ViTConfig, export_backbone, load_backbone, save_backbone
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD
from dinocell.models.weights.tensors import read_safetensors
from dinocell.training.checkpoint import CheckpointManager

RECORDED = json.loads((Path(__file__).parents[2] / "golden" / "models_layouts.json").read_text())
SIDE = 56


def backbone(registers: int = 0, channels: int = 1) -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(
        arch="vit_tiny",
        depth=4,
        patch_size=14,
        image_size=SIDE,
        in_channels=channels,
        registers=registers,
        layerscale_init=0.5,
        interpolate_antialias=registers > 0,
        interpolate_offset=0.0 if registers else 0.1,
    )
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def normalised(gray: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (gray - mean) / std


def exported(tmp_path: Path, to: Any, registers: int) -> tuple[VisionTransformer, Path]:
    model = backbone(registers)
    source = save_backbone(tmp_path, model, {})
    return model, export_backbone(source, to=to)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("to", ["dinov2", "hf", "timm"])
def test_names_and_shapes_are_the_other_softwares(to: str, registers: int, tmp_path: Path) -> None:
    path = exported(tmp_path, to, registers)[1]
    if path.is_dir():
        state = read_safetensors(path / "model.safetensors")[0]
    else:
        state = torch.load(path, weights_only=True)
    expected = RECORDED["layouts"][f"{to}_reg4" if registers else to]
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("to", ["dinov2", "hf", "timm"])
def test_rgb_export_of_a_gray_backbone_gives_the_same_tokens_for_gray_images(
    to: str, registers: int, tmp_path: Path, tokens: Any, worst: Any
) -> None:
    model, path = exported(tmp_path, to, registers)
    gray = torch.rand(2, 1, SIDE, SIDE)
    with torch.no_grad():
        assert worst(tokens(load_backbone(path).eval()(normalised(gray))), tokens(model(gray))) < 1e-5


def test_backbone_export_keeps_gray_and_records_its_parent(tmp_path: Path) -> None:
    save_backbone(tmp_path / "a", backbone(), {})
    out = export_backbone(tmp_path / "a", to="backbone", out=tmp_path / "b")
    assert load_backbone(out, in_channels=None).in_channels == 1
    assert len(json.loads(out.with_suffix(".json").read_text())["parent_sha256"]) == 64
    with pytest.raises(ConfigError, match="another place"):
        export_backbone(tmp_path / "a", to="backbone")


def test_a_run_is_exported_as_often_as_one_likes(tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in backbone().state_dict().items()}
    CheckpointManager(tmp_path / "checkpoints").save(1, {"teacher": state, "config": {"model": {"registers": 0}}})
    first, _ = read_safetensors(export_backbone(tmp_path, to="backbone"))
    again, _ = read_safetensors(export_backbone(tmp_path, to="backbone"))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_script_answers_help_and_names_a_missing_run(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "ssl" / "export_backbone.py"
    environment = {"PYTHONPATH": str(script.parents[1]), "PATH": ""}
    missing = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "no_run")], capture_output=True, text=True, env=environment
    )
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1 and "no_run" in missing.stderr


@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_computes_the_same(registers: int, tmp_path: Path, tokens: Any, worst: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model, path = exported(tmp_path, "hf", registers)
    other, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    gray = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        assert worst(other.eval()(normalised(gray)).last_hidden_state, tokens(model(gray))) < 1e-5


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_computes_the_same(registers: int, tmp_path: Path, tokens: Any, worst: Any) -> None:
    timm = pytest.importorskip("timm")
    model, path = exported(tmp_path, "timm", registers)
    other = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    gray = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        assert worst(other.forward_features(normalised(gray)), tokens(model(gray))) < 1e-5


@pytest.mark.parametrize("registers", [0, 4])
def test_upstream_loads_strictly_and_computes_the_same(registers: int, tmp_path: Path, tokens: Any, worst: Any) -> None:
    upstream = pytest.importorskip("dinov2.models.vision_transformer")
    model, path = exported(tmp_path, "dinov2", registers)
    other = upstream.DinoVisionTransformer(**json.loads(path.with_suffix(".json").read_text())["arguments"]).eval()
    other.load_state_dict(torch.load(path, weights_only=True), strict=True)
    gray = torch.rand(1, 1, SIDE, SIDE + 28)
    with torch.no_grad():
        assert worst(tokens(other.forward_features(normalised(gray))), tokens(model(gray))) < 1e-5
