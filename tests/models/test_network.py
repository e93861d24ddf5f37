from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.models import (
    DecoderConfig,
    ModelCard,
    SegmentationModel,
    VisionTransformer,
    ViTConfig,
    forward_flops,
    load_backbone,
    load_model_folder,
    save_model,
)
from dinocell.models.decoder import LayerNorm2d, upsampling_blocks
from dinocell.objectives import ObjectiveConfig


def network(kind: Any = "transposed", channels: int = 3, crop: int = 32, size: int = 48, in_channels: int = 1) -> Any:
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", depth=1, image_size=size, in_channels=in_channels))
    return SegmentationModel(backbone, DecoderConfig(kind=kind, neck_width=32), channels, crop, size).eval()


@pytest.mark.parametrize(
    ("crop", "grid", "blocks"), [(512, 112, 2), (512, 64, 3), (512, 512, 0), (256, 18, 3), (8, 16, 0)]
)
def test_number_of_doublings(crop: int, grid: int, blocks: int) -> None:
    assert upsampling_blocks(crop, grid) == blocks


@pytest.mark.parametrize("kind", ["transposed", "bilinear", "linear"])
@pytest.mark.parametrize(("crop", "size"), [(32, 48), (48, 48), (64, 32)])
def test_maps_come_at_the_size_of_the_crop(kind: str, crop: int, size: int) -> None:
    model = network(kind, crop=crop, size=size)
    assert model(torch.randn(2, 1, crop, crop)).shape == (2, 3, crop, crop)


def test_larger_windows_use_the_same_scale() -> None:
    assert network()(torch.randn(1, 1, 64, 96)).shape == (1, 3, 64, 96)
    with pytest.raises(ValueError, match="patch"):
        network()(torch.randn(1, 1, 33, 32))


def test_papers_decoder_has_the_papers_widths() -> None:
    """Paper §3.1.2: 768→512 neck; 512→256→128; 128→64; a head 64→32→16→1 per map."""
    backbone = VisionTransformer(ViTConfig(arch="vit_base", depth=1, image_size=896))
    model = SegmentationModel(backbone, DecoderConfig(), 3, 512, 896)
    shapes = [tuple(p.shape) for name, p in model.decoder.named_parameters() if p.ndim == 4]
    up = [(512, 256, 4, 4), (256, 128, 4, 4), (64, 128, 3, 3)]
    head = [(32, 64, 3, 3), (16, 32, 3, 3), (1, 16, 1, 1)]
    assert shapes == [(512, 768, 1, 1), (512, 512, 3, 3), *up, *head, *head, *head]


def test_gray_and_rgb_backbones_see_the_same_crop() -> None:
    """One network in its gray and its RGB form, through the same preprocessed crop."""
    from dinocell.models.weights.resize import unfold_gray_to_rgb

    gray, rgb = network(), network(in_channels=3)
    state = gray.state_dict()
    weight, bias = unfold_gray_to_rgb(
        state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"]
    )
    rgb.load_state_dict(state | {"backbone.patch_embed.proj.weight": weight, "backbone.patch_embed.proj.bias": bias})
    z = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(gray(z), rgb(z), rtol=1e-4, atol=1e-5)


def test_every_head_is_its_own() -> None:
    model = network()
    z = torch.randn(1, 1, 32, 32)
    before = model(z)
    with torch.no_grad():
        model.decoder.heads[1][-1].bias.add_(1)
    torch.testing.assert_close(model(z) - before, torch.tensor([0.0, 1, 0]).reshape(1, 3, 1, 1).expand_as(before))


def test_layer_norm_is_over_channels() -> None:
    x = 3 + 2 * torch.randn(2, 16, 5, 7)
    out = LayerNorm2d(16)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 5, 7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("path", ["model", "model/model.safetensors"])
def test_the_backbone_of_a_model_folder_keeps_its_way_with_positions(path: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = ViTConfig(
        arch="vit_tiny", depth=1, image_size=48, in_channels=1, interpolate_antialias=True, interpolate_offset=0.0
    )
    model = SegmentationModel(VisionTransformer(other), DecoderConfig(neck_width=32), 3, 32, 48).eval()
    save_model(tmp_path / "model", model, ModelCard(crop_size=32))
    backbone = load_backbone(tmp_path / path, in_channels=None)
    assert backbone.config == model.backbone.config
    z = torch.rand(1, 1, 56, 40)  # no side is the stored grid's
    torch.testing.assert_close(backbone(z), model.backbone(z), rtol=0, atol=0)


def test_a_config_beside_weights_of_other_software_is_not_read(tmp_path: Path) -> None:
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", depth=1, image_size=48, in_channels=1))
    torch.nn.init.ones_(backbone.mask_token)  # zeros would be drawn anew
    tensors = {f"model.{name}": value for name, value in backbone.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text("[1, 2]")
    loaded = load_backbone(tmp_path / "weights.safetensors", in_channels=None)
    torch.testing.assert_close(loaded.state_dict(), backbone.state_dict())


@pytest.mark.parametrize("half", [False, True])
def test_folder_gives_back_the_model(half: bool, tmp_path: Path) -> None:
    model = network()
    save_model(tmp_path / "model", model, ModelCard(crop_size=32, objective=ObjectiveConfig(flow_scale=5)), half=half)
    again, card = load_model_folder(tmp_path / "model")
    z = torch.randn(1, 1, 32, 32)
    tolerance = 2e-2 if half else 0.0
    torch.testing.assert_close(again(z), model(z), rtol=tolerance, atol=tolerance)
    assert card.objective == ObjectiveConfig(flow_scale=5) and not again.training
    assert next(again.parameters()).dtype == torch.float32


def test_half_precision_folder_is_half_the_size(tmp_path: Path) -> None:
    card = ModelCard(crop_size=32)
    full, half = (save_model(tmp_path / str(h), network(), card, half=h) / "model.safetensors" for h in (False, True))
    assert half.stat().st_size < 0.6 * full.stat().st_size


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    match kind:
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:3000])
        case "broken config":
            config.write_text(config.read_text()[:40])
        case "lacking config":
            config.write_text("{}")
        case "other widths":
            content = json.loads(config.read_text())
            content["decoder"]["neck_width"] = 64
            config.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["truncated weights", "broken config", "lacking config", "other widths"])
def test_damaged_folder_is_one_line_naming_the_file(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, network(), ModelCard(crop_size=32))
    damage(tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        load_model_folder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_model_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("changes", [{"kind": "unet"}, {"neck_width": 12}, {"drop_rate": 1.5}])
def test_unfit_decoder_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        DecoderConfig(**changes)


def test_flops_of_a_backbone_by_hand() -> None:
    """2·(patches·p²·D) + per block 2·T·12·D² and 4·T²·D, T tokens an image."""
    model = VisionTransformer(ViTConfig(arch="vit_tiny", depth=3, image_size=64, registers=4))

    def expected(side: int) -> float:
        patches = (side // 8) ** 2
        count = patches + 5
        return 2 * patches * 64 * 192 + 3 * (24 * count * 192**2 + 4 * count**2 * 192)

    assert forward_flops(model, torch.zeros(2, 1, 64, 64)) == 2 * expected(64)
    crops = [torch.zeros(2, 1, 64, 64), torch.zeros(5, 1, 32, 32)]
    assert forward_flops(model, crops) == 2 * expected(64) + 5 * expected(32)


def test_flops_of_a_segmentation_model_equal_fvcores() -> None:
    from fvcore.nn import FlopCountAnalysis

    def attention(inputs: list[Any], outputs: list[Any]) -> int:
        batch, heads, count, width = inputs[0].type().sizes()
        return int(2 * batch * heads * count**2 * width)

    model, z = network(), torch.zeros(1, 1, 32, 32)
    counter = FlopCountAnalysis(model, z)
    counter.set_op_handle("aten::scaled_dot_product_attention", attention)
    counter.unsupported_ops_warnings(False)
    counted = counter.by_operator()
    elementwise = counted["layer_norm"] + counted["upsample_bilinear2d"]
    assert forward_flops(model, z) == 2 * (counter.total() - elementwise)
