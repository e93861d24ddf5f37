"""Reading backbone weights of every published layout, and bringing their names to upstream DINOv2's.

`read_weights` returns tensors named as upstream names them; shapes are the file's own (`weights.py` adapts them).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import load_file, local_path
from dinocell.models.folder import backbone_beside
from dinocell.models.weights.tensors import State, read_safetensors
from dinocell.training.checkpoint import run_checkpoint

BACKBONE_NAME = "backbone.safetensors"
CONFIG_KEY = "dinocell_backbone"
# Wrappers (DDP, FSDP, torch.compile, activation checkpointing) put these into parameter names.
_WRAPPERS = re.compile(r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_SUPPORTED = "DINOv2, DinoBloom, DINO v1, Hugging Face Dinov2, timm DINOv2 and DINOCell weights are read"
# Hugging Face's names inside the encoder, and upstream's; the export reads the table the other way.
HF_BLOCK_NAMES = (
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.weights_in.", ".mlp.w12."),
    (".mlp.weights_out.", ".mlp.w3."),
)
_HF_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("layernorm.", "norm."),
    *HF_BLOCK_NAMES,
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A backbone's tensors under upstream's names, and where they came from."""

    file: Path
    layout: str
    state: State
    config: Mapping[str, Any]  # ViTConfig fields, where the file says them


def read_weights(path: str | Path) -> Weights:
    """Read the backbone in a file, a Hugging Face folder, an exported folder or a pretraining run.

    Raises:
        ConfigError: no such file.
        CheckpointError: unreadable, or no ViT backbone inside; names the path and what was found.
    """
    file = _weights_file(local_path(path))
    config: Mapping[str, Any] = {}
    if file.suffix == ".safetensors":
        tensors, metadata = read_safetensors(file)
        config = _stored_config(file, metadata.get(CONFIG_KEY, "{}")) or _model_config(file, tensors)
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in DINO v1's full checkpoints; contains no code
            content = load_file(file)
        run_config = content.get("config")
        if isinstance(run_config, Mapping) and isinstance(run_config.get("model"), Mapping):
            config = run_config["model"]
        tensors = _flatten(content)
    _refuse_views(file, tensors)
    layout, state = canonical(tensors, str(file))
    return Weights(file=file, layout="DINOCell" if config else layout, state=state, config=config)


def _stored_config(file: Path, text: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file}: its configuration is not JSON ({error}); get the file again") from error
    if not isinstance(config, Mapping):
        kind = type(config).__name__
        raise CheckpointError(f"{file}: its configuration is a {kind}, not a mapping; get the file again")
    return config


def _model_config(file: Path, tensors: State) -> Mapping[str, Any]:
    """The backbone on the card beside a fine-tuned model's tensors, which do not say how positions are interpolated;
    empty for tensors of other software, whatever is stored beside them."""
    ours = any(name.startswith("decoder.") for name in tensors)
    backbone = backbone_beside(file) if ours else None
    return asdict(backbone) if backbone is not None else {}


def _refuse_views(file: Path, tensors: State) -> None:
    """A tensor that repeats a few stored values can claim any size, and fill the memory when it is first copied."""
    for name, value in tensors.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{file}: {name} claims {tuple(value.shape)}, more values than the file stores")


def _weights_file(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a weights file, a model folder or a pretraining run")
    if path.is_file():
        return path
    names = (BACKBONE_NAME, "model.safetensors", "pytorch_model.bin")
    exported = next((path / name for name in names if (path / name).is_file()), None)
    if exported is not None and not (path / "checkpoints").is_dir():
        return exported
    checkpoint = run_checkpoint(path) or exported  # what a run exported may be older than its checkpoints
    if checkpoint is None:
        raise CheckpointError(
            f"{path}: contains no {BACKBONE_NAME}, model.safetensors, pytorch_model.bin or whole checkpoints/step_*.pt"
        )
    return checkpoint


def _flatten(content: Mapping[str, Any], prefix: str = "") -> State:
    """Tensors of nested dicts by dotted name; the rest of a checkpoint (optimizer numbers, text) is left out."""
    state: State = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[f"{prefix}{key}"] = value.float() if value.is_floating_point() else value
        elif isinstance(value, Mapping) and not key.startswith(("optim", "config", "args")):
            state.update(_flatten(value, f"{prefix}{key}."))
    return state


def canonical(tensors: State, origin: str) -> tuple[str, State]:
    """The layout's name, and the backbone's tensors under upstream DINOv2's names.

    Raises:
        CheckpointError: no class token and patch embedding found.
    """
    named = {_WRAPPERS.sub("", key).lstrip("."): value for key, value in tensors.items()}
    prefix = _backbone_prefix(named)
    if prefix is None:
        sample = ", ".join(list(named)[:3]) or "no tensors"
        found = f"{len(named)} tensors: {sample}…"
        raise CheckpointError(f"{origin}: contains no ViT backbone (found {found}); {_SUPPORTED}")
    state = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
    layout, state = _rename(state)
    if "patch_embed.proj.weight" not in state or "pos_embed" not in state:
        raise CheckpointError(f"{origin}: has a class token but no patch embedding or positions; {_SUPPORTED}")
    return (f"{layout}, {prefix.rstrip('.')}" if prefix else layout), state


def _backbone_prefix(named: State) -> str | None:
    """Prefix of the backbone's names: a teacher's if there is one, else the shortest."""
    prefixes = [key.removesuffix("cls_token") for key in named if re.search(r"(^|\.)cls_token$", key)]
    prefixes = [prefix.removesuffix("embeddings.") for prefix in prefixes]
    return min(prefixes, key=lambda prefix: ("teacher" not in prefix, len(prefix)), default=None)


def _rename(state: State) -> tuple[str, State]:
    if "embeddings.cls_token" in state:
        return "Hugging Face Dinov2", _from_hugging_face(state)
    if "reg_token" in state or _is_packed_swiglu(state):
        return "timm", _from_timm(state)
    if any(_CHUNKED_BLOCK.match(key) for key in state):
        unchunked = {_CHUNKED_BLOCK.sub(r"blocks.\1.", key): value for key, value in state.items()}
        return "DINOv2 training checkpoint", unchunked
    return "DINOv2" if "blocks.0.ls1.gamma" in state else "DINO v1", state


def _from_hugging_face(state: State) -> State:
    renamed: State = {}
    for key, value in state.items():
        for old, new in _HF_NAMES:
            key = key.replace(old, new, 1)
        renamed[key] = value
    for key in [key for key in renamed if ".attention.attention.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[key.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat(parts)  # [3·D(, D)]
    return renamed


def _is_packed_swiglu(state: State) -> bool:
    """True if an MLP's first layer is twice as wide as its second reads: timm's names for ViT-g's SwiGLU."""
    first, second = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def _from_timm(state: State) -> State:
    """timm's register models add the class token's position into the token and store positions for patches only."""
    renamed: State = {}
    packed = _is_packed_swiglu(state)
    for key, value in state.items():
        if packed:
            key = key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        renamed["register_tokens" if key == "reg_token" else key] = value
    if "reg_token" in state:
        positions = renamed["pos_embed"]
        renamed["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)  # [1, 1 + N, D]
    return renamed
