"""A backbone in the layouts other software loads: upstream DINOv2, Hugging Face transformers, timm.

Those take ImageNet-normalised RGB: a gray backbone is written with its filters spread over three channels, which gives
the same tokens for the same gray image.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors.torch import save

from dinocell.core import log
from dinocell.core.errors import ConfigError
from dinocell.core.files import atomic_write_bytes, atomic_write_text
from dinocell.models.vit.block import NORM_EPS
from dinocell.models.vit.vision_transformer import VisionTransformer
from dinocell.models.weights.layouts import HF_BLOCK_NAMES
from dinocell.models.weights.load import LoadReport, backbone_file, load_backbone, save_backbone
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD, unfold_gray_to_rgb
from dinocell.models.weights.tensors import State

ExportFormat = Literal["backbone", "dinov2", "hf", "timm"]


def export_backbone(run_dir: str | Path, to: ExportFormat = "backbone", out: str | Path | None = None) -> Path:
    """Write the backbone of a pretraining run (its teacher), or of any file `load_backbone` reads.

    Args:
        run_dir: run folder (its best checkpoint if one was kept, else its newest whole one), or a weights file.
        to: `backbone`: backbone.safetensors and backbone.json. `dinov2`: dinov2.pth, which upstream's class loads with
            strict=True, built with the settings in dinov2.json. `hf`: folder for transformers' `from_pretrained`.
            `timm`: folder for `timm.create_model("local-dir:…")`.
        out: folder, or for `backbone` and `dinov2` the file; default: in the run folder (beside a weights file).

    Returns:
        The file (`backbone`, `dinov2`) or folder (`hf`, `timm`) written.

    Raises:
        CheckpointError: nothing loadable there.
        ConfigError: the output would overwrite the input.
    """
    model = load_backbone(run_dir, in_channels=None)
    source = Path(run_dir)
    base = Path(out) if out is not None else (source if source.is_dir() else source.parent)
    report = model.load_report
    assert isinstance(report, LoadReport)
    parent = {"parent": report.file, "parent_sha256": report.sha256}
    match to:
        case "backbone" if backbone_file(base).resolve() == Path(report.file).resolve():
            raise ConfigError(f"{report.file}: is already a backbone file; name another place to write it to")
        case "backbone":
            written = save_backbone(base, model, parent)
        case "dinov2":
            written = _write_dinov2(base, model, parent)
        case "hf":
            written = _write_hugging_face(base if out is not None else base / "hf", model)
        case "timm":
            written = _write_timm(base if out is not None else base / "timm", model)
        case _:
            assert_never(to)
    log.info(f"exported: {written}")
    return written


def rgb_state(model: VisionTransformer) -> State:
    """The state dict on the CPU in float32, with patch filters on three ImageNet-normalised channels."""
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()}
    if model.in_channels == 1:
        weight, bias = unfold_gray_to_rgb(state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
        state |= {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias}
    return state


def _write_dinov2(base: Path, model: VisionTransformer, parent: dict[str, str]) -> Path:
    file = base if base.suffix == ".pth" else base / "dinov2.pth"
    config = model.config
    arguments = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.num_blocks,
        "num_heads": config.num_heads,
        "init_values": 1.0,
        "ffn_layer": "swiglufused" if config.arch == "vit_giant2" else "mlp",
        "block_chunks": 0,
        "num_register_tokens": config.registers,
        "interpolate_antialias": config.interpolate_antialias,
        "interpolate_offset": config.interpolate_offset,
    }
    buffer = io.BytesIO()
    torch.save(rgb_state(model), buffer)
    atomic_write_bytes(file, buffer.getvalue())
    about = {"class": "dinov2.models.vision_transformer.DinoVisionTransformer", "arguments": arguments, **parent}
    atomic_write_text(file.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return file


def hugging_face_state(state: State) -> State:
    """Upstream names and tensors → those of transformers' Dinov2Model and Dinov2WithRegistersModel."""
    renamed: State = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[_to_hugging_face(key.replace("attn.qkv", f"attention.attention.{part}"))] = rows.contiguous()
        else:
            renamed[_to_hugging_face(key)] = value
    return renamed


def _to_hugging_face(key: str) -> str:
    if not key.startswith(("blocks.", "norm.")):
        key = key.replace("pos_embed", "position_embeddings").replace("patch_embed.proj", "patch_embeddings.projection")
        return f"embeddings.{key}"
    for new, old in HF_BLOCK_NAMES:
        key = key.replace(old, new)
    return f"layernorm.{key.removeprefix('norm.')}" if key.startswith("norm.") else key


def _write_hugging_face(folder: Path, model: VisionTransformer) -> Path:
    config = model.config
    name = "Dinov2WithRegisters" if config.registers else "Dinov2"
    description: dict[str, Any] = {
        "architectures": [f"{name}Model"],
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": config.arch == "vit_giant2",
        **({"num_register_tokens": config.registers} if config.registers else {}),
    }
    if config.interpolate_offset and not config.registers:
        log.info(
            f"transformers interpolates positions without upstream's offset {config.interpolate_offset:g}: "
            f"tokens are equal at {config.image_size} px and close to equal (about 1 %) at other sizes"
        )
    # AutoImageProcessor reads this: images come at the model's own size, so nothing is cropped.
    side = {"height": config.image_size, "width": config.image_size}
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    atomic_write_bytes(folder / "model.safetensors", save(hugging_face_state(rgb_state(model)), {"format": "pt"}))
    atomic_write_text(folder / "config.json", json.dumps(description, indent=2) + "\n")
    atomic_write_text(folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")
    return folder


def timm_state(state: State) -> State:
    """Upstream names and tensors → those of timm's DINOv2 models, which have no mask token."""
    renamed = {key.replace(".w12.", ".fc1.").replace(".w3.", ".fc2."): value for key, value in state.items()}
    del renamed["mask_token"]
    if "register_tokens" in renamed:
        # timm adds positions to patches only when there are registers: the class token takes its own along.
        positions = renamed["pos_embed"]
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:].contiguous()
    return renamed


def _write_timm(folder: Path, model: VisionTransformer) -> Path:
    config = model.config
    # timm has no ViT-Ti of DINOv2's kind: the small one with other widths is the same class.
    size = {"vit_tiny": "small", "vit_giant2": "giant"}.get(config.arch, config.arch.removeprefix("vit_"))
    description = {
        "architecture": f"vit_{size}_patch14_{'reg4_' if config.registers else ''}dinov2",
        "num_classes": 0,
        "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depth": config.num_blocks,
            "num_heads": config.num_heads,
            **({"reg_tokens": config.registers} if config.registers else {}),
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, config.image_size, config.image_size],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    atomic_write_bytes(folder / "model.safetensors", save(timm_state(rgb_state(model)), {"format": "pt"}))
    atomic_write_text(folder / "config.json", json.dumps(description, indent=2) + "\n")
    return folder
