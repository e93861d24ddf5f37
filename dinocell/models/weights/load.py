"""Loading any DINOv2-family backbone at another patch size or channel count, and writing our own format."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dinocell.core import log
from dinocell.core.errors import CheckpointError
from dinocell.core.files import atomic_write_bytes, atomic_write_text, sha256_of
from dinocell.models.vit.vision_transformer import ARCHITECTURES, VisionTransformer, ViTConfig
from dinocell.models.weights.layouts import BACKBONE_NAME, CONFIG_KEY, Weights, read_weights
from dinocell.models.weights.resize import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PatchResize,
    fold_rgb_to_gray,
    interpolate_grid,
    resize_patch_filters,
    unfold_gray_to_rgb,
)
from dinocell.models.weights.tensors import State

FORMAT = "dinocell-backbone-1"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Report on every tensor of a weights file."""

    file: str
    sha256: str
    layout: str
    arch: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for the console, one fact a line."""
        counts = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        lines = [f"{self.file}: {self.arch}, {self.layout}; {counts}; sha256 {self.sha256}"]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected), ("resized", self.resized)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                lines.append(f"  {title}: {', '.join(names[:6])}{more}")
        return lines + [f"  {note}" for note in self.notes]


def load_backbone(
    path: str | Path,
    patch_size: int | None = None,
    in_channels: int | None = 3,
    *,
    image_size: int | None = None,
    patch_resize: PatchResize = "pinv",
    drop_path: float = 0.0,
) -> VisionTransformer:
    """A backbone from any file the project reads, with a report on the console and in `.load_report`.

    Read are: DINOv2 .pth (plain, reg4), DINOv2 training checkpoints, DinoBloom, DINO v1, Hugging Face Dinov2 and
    Dinov2WithRegisters folders, timm DINOv2, our backbone.safetensors (or its folder) and our pretraining runs.
    The architecture follows from the tensors' shapes.

    Args:
        path: file or folder, local or a URL.
        patch_size: patch side in px; None keeps the file's, another value resizes the filters (`patch_resize`).
        in_channels: 1 folds RGB filters and ImageNet's normalisation into one channel for gray input in [0, 1];
            3 takes normalised RGB; None keeps the file's.
        image_size: image side in px whose position grid is stored; None keeps the file's grid, which the forward pass
            interpolates as needed.
        patch_resize: `pinv` (FlexiViT), `bicubic`, or `bicubic_scaled`; see `resize_patch_filters`.
        drop_path: as in `ViTConfig`.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: the file is unreadable, or contains no fitting backbone.
        ConfigError: `patch_size` does not divide `image_size`.
    """
    weights = read_weights(path)
    state = dict(weights.state)
    source = _infer_config(weights)
    resized, notes = _adapt_patches(state, source, patch_size or source.patch_size, in_channels, patch_resize)
    config = dataclasses.replace(
        source,
        patch_size=patch_size or source.patch_size,
        in_channels=in_channels or source.in_channels,
        image_size=(patch_size or source.patch_size) * source.grid,
        drop_path=drop_path,
    )
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
        resized += _adapt_positions(state, config)
    missing, filled = _fill_absent(state, config)
    with torch.device("meta"):  # no time and no random numbers for values that are replaced
        model = VisionTransformer(config)
    matched, unexpected = _load(model, state, weights)
    model.load_report = LoadReport(
        file=str(weights.file),
        sha256=sha256_of(weights.file),
        layout=weights.layout,
        arch=f"{config.arch}/{config.patch_size}" + (f" reg{config.registers}" if config.registers else ""),
        matched=tuple(name for name in matched if name not in missing),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        resized=tuple(resized),
        notes=tuple(notes + filled),
    )
    for line in model.load_report.lines():
        log.info(line)
    return model


def _infer_config(weights: Weights) -> ViTConfig:
    state, origin = weights.state, weights.file
    dim = state["cls_token"].shape[-1]
    arch = next((name for name, (width, _, _) in ARCHITECTURES.items() if width == dim), None)
    if arch is None:
        widths = ", ".join(f"{name} {width}" for name, (width, _, _) in ARCHITECTURES.items())
        raise CheckpointError(f"{origin}: token width {dim} is of no known architecture ({widths})")
    indices = {int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))}
    if indices != set(range(len(indices))) or not indices:
        raise CheckpointError(
            f"{origin}: transformer blocks {sorted(indices)} are incomplete; is this one shard of several?"
        )
    filters, positions = state["patch_embed.proj.weight"], state["pos_embed"].shape[1] - 1
    grid = math.isqrt(positions)
    if filters.ndim != 4 or filters.shape[1] not in (1, 3) or grid * grid != positions:
        shape = tuple(filters.shape)
        raise CheckpointError(
            f"{origin}: patch filters {shape} and {positions} positions fit no square ViT on 1 or 3 channels"
        )
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    # Trained so: plain weights with the 0.1 kludge, register weights without it and with antialiasing.
    trained = {"interpolate_offset": 0.0 if registers else 0.1, "interpolate_antialias": bool(registers)}
    said = {
        key: weights.config.get(key, trained[key]) for key in trained if weights.config.get("registers") == registers
    }
    return ViTConfig(
        arch=arch,  # type: ignore[arg-type]
        patch_size=filters.shape[-1],
        image_size=filters.shape[-1] * grid,
        in_channels=filters.shape[1],
        registers=registers,
        depth=None if len(indices) == ARCHITECTURES[arch][1] else len(indices),
        **{**trained, **said},
    )


def _adapt_patches(
    state: State, source: ViTConfig, patch: int, channels: int | None, method: PatchResize
) -> tuple[list[str], list[str]]:
    """Resize the patch filters and change their channels, in place; returns what was resized and what to report."""
    resized, notes = [], []
    weight = state["patch_embed.proj.weight"]
    bias = state.get("patch_embed.proj.bias", weight.new_zeros(weight.shape[0]))
    target = channels or source.in_channels
    if source.in_channels == 1 and (target == 3 or patch != source.patch_size):
        weight, bias = unfold_gray_to_rgb(weight, bias)  # resizing folded filters would leave the folded mean behind
    if patch != source.patch_size:
        weight = resize_patch_filters(weight, patch, method)
        resized.append(f"patch_embed.proj.weight {source.patch_size}→{patch} px ({method})")
    if target == 1 and weight.shape[1] == 3:
        weight, bias = fold_rgb_to_gray(weight, bias)
    if target != source.in_channels:
        how = (
            "RGB filters and ImageNet normalisation folded into gray" if target == 1 else "gray filters spread over RGB"
        )
        notes.append(f"channels {source.in_channels}→{target}: {how}")
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = weight, bias
    return resized, notes


def positions_at_grid(positions: Tensor, config: ViTConfig) -> Tensor:
    """Stored positions [1, 1 + N, D] resized to the grid of `config`, the class token's kept."""
    patches = interpolate_grid(
        positions[:, 1:],
        (config.grid, config.grid),
        antialias=config.interpolate_antialias,
        offset=config.interpolate_offset,
    )
    return torch.cat([positions[:, :1], patches], dim=1)


def _adapt_positions(state: State, config: ViTConfig) -> list[str]:
    positions = state["pos_embed"]
    stored = math.isqrt(positions.shape[1] - 1)
    if stored == config.grid:
        return []
    state["pos_embed"] = positions_at_grid(positions, config)
    how = f"offset {config.interpolate_offset:g}, antialias {config.interpolate_antialias}"
    return [f"pos_embed {stored}×{stored}→{config.grid}×{config.grid} (bicubic, {how})"]


def _fill_absent(state: State, config: ViTConfig) -> tuple[list[str], list[str]]:
    """Give values to what some layouts lack, in place; returns the names and what to report."""
    missing: list[str] = []
    notes: list[str] = []
    mask = state.get("mask_token")
    if mask is None or not mask.any():
        # A fixed, separate seed: every process of a run must start from the same token.
        token = torch.zeros(1, config.embed_dim)
        nn.init.trunc_normal_(token, std=0.02, generator=torch.Generator().manual_seed(0))
        state["mask_token"] = token
        why = "all zeros (trained without masking)" if mask is not None else "absent"
        notes.append(f"mask_token was {why}: initialized, truncated normal, std 0.02")
        missing += ["mask_token"] if mask is None else []
    gammas = [f"blocks.{i}.{name}.gamma" for i in range(config.num_blocks) for name in ("ls1", "ls2")]
    if not any(name in state for name in gammas):
        state.update({name: torch.ones(config.embed_dim) for name in gammas})
        notes.append("no LayerScale in these weights: factors set to 1, which changes nothing")
        missing += gammas
    return missing, notes


def _load(model: VisionTransformer, state: State, weights: Weights) -> tuple[list[str], list[str]]:
    """Copy into the model; every parameter must be there and fit. Returns matched and unexpected names."""
    wanted = model.state_dict()
    absent = [name for name in wanted if name not in state]
    if absent:
        raise CheckpointError(
            f"{weights.file}: {len(absent)} tensors are missing for {model.config.arch}, e.g. {absent[0]}"
        )
    for name, value in wanted.items():
        if value.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, {model.config.arch} needs {tuple(value.shape)}"
            raise CheckpointError(f"{weights.file}: {name} has shape {shapes}")
    model.load_state_dict({name: state[name].contiguous() for name in wanted}, assign=True)
    return list(wanted), [name for name in state if name not in wanted]


def backbone_file(path: str | Path) -> Path:
    """The .safetensors file that `save_backbone` writes for a folder or a file name."""
    return Path(path) if Path(path).suffix == ".safetensors" else Path(path) / BACKBONE_NAME


def save_backbone(path: str | Path, model: VisionTransformer, metadata: Mapping[str, Any]) -> Path:
    """Write `backbone.safetensors` and `backbone.json`.

    Args:
        path: a folder, or the .safetensors file itself (its .json stands beside it).
        model: the backbone; stored in float32.
        metadata: what else to record in the JSON, e.g. the parent's sha256.

    Returns:
        The .safetensors file, which alone suffices for `load_backbone`.
    """
    file = backbone_file(path)
    state: dict[str, Tensor] = {
        name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()
    }
    config = dataclasses.asdict(dataclasses.replace(model.config, drop_path=0.0))
    gray = "gray in [0, 1]; ImageNet normalisation folded into the patch filters"
    rgb = {"input": "RGB in [0, 1], normalised", "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    description = {
        "format": FORMAT,
        **config,
        "normalisation": {"input": gray} if model.in_channels == 1 else rgb,
        **metadata,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, save(state, metadata={"format": "pt", CONFIG_KEY: json.dumps(config)}))
    atomic_write_text(file.with_suffix(".json"), json.dumps(description, indent=2) + "\n")
    return file
