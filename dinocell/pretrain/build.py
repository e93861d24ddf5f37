"""Assemble a run: backbone, student and teacher, optimizer, and the checkpoint to continue from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from dinocell import models
from dinocell.core import log
from dinocell.core.config import from_dict, to_dict
from dinocell.core.errors import CheckpointError, ConfigError, first_line
from dinocell.models import VisionTransformer, ViTConfig
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.method.student_teacher import StudentTeacher
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.optim import adamw, parameter_groups

# keys that may change between a run and its continuation without changing what is learnt
_FREE_KEYS = (
    "output_dir",
    "device",
    "tensorboard",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_bad_steps",
    "compile",
    "parallel",
    "activation_checkpointing",
    "weights",
    "model",
    "data.workers",
    "data.prefetch",
)


def make_backbone(config: PretrainConfig) -> VisionTransformer:
    """The backbone to start from: random, or `config.weights` fitted to the recipe's patch size and channels.

    Raises:
        ConfigError: the weights have another architecture than the recipe.
    """
    model = config.model
    if config.weights is None:
        log.info("weights: random, none are given (weights=PATH)")
        return VisionTransformer(model)
    backbone = models.load_backbone(
        config.weights,
        patch_size=model.patch_size,
        in_channels=model.in_channels,
        image_size=model.image_size,
        patch_resize=config.patch_resize,
        drop_path=model.drop_path,
    )
    if backbone.config.arch != model.arch:
        raise ConfigError(
            f"weights: {config.weights!r} contain a {backbone.config.arch}, the recipe asks for {model.arch}; "
            f"set model.arch={backbone.config.arch} or give other weights"
        )
    return backbone


def restore_backbone(config: PretrainConfig, state: dict[str, Any]) -> VisionTransformer:
    """An empty backbone of the checkpoint's shape; its weights come with the student's and teacher's.

    Raises:
        ConfigError: the recipe now asks for another shape.
    """
    saved = from_dict(ViTConfig, state["config"]["model"], "checkpoint")
    # loaded weights bring their own registers and position rules: only what the recipe fixes can disagree
    for name in ("arch", "patch_size", "in_channels"):
        old, new = getattr(saved, name), getattr(config.model, name)
        if old != new:
            raise ConfigError(
                f"model.{name}: {new!r}, but output_dir {config.output_dir!r} contains a run with {old!r}; "
                "use another output_dir or the run's own config.yaml"
            )
    return VisionTransformer(dataclasses.replace(saved, drop_path=config.model.drop_path))


def make_optimizer(model: StudentTeacher, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW over the student's parts, with DINOv2's groups."""
    groups: list[dict[str, Any]] = []
    for name, part in model.student.items():
        depth = part.depth if isinstance(part, VisionTransformer) else 0
        groups += parameter_groups(
            part,
            depth=depth,
            layer_decay=config.optim.layer_decay,
            patch_embed_multiplier=config.optim.patch_embed_multiplier,
            name=name,
        )
    return adamw(groups, betas=config.optim.betas)


def load_state(model: StudentTeacher, optimizer: torch.optim.Optimizer, state: dict[str, Any], where: Path) -> None:
    """Fill model and optimizer from a checkpoint.

    Raises:
        CheckpointError: it contains another shape of model.
    """
    try:
        model.student.load_state_dict(state["student"])
        model.teacher.load_state_dict(state["teacher"])
        model.centers.load_state_dict(state["centers"])
        model.anchor.load_state_dict(state.get("anchor", {}))
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint in {str(where)!r} does not fit this recipe ({first_line(error)}); use another output_dir or "
            "the run's own config.yaml"
        ) from error


def load_latest(config: PretrainConfig) -> tuple[int, dict[str, Any]] | None:
    """The newest whole checkpoint of the run's folder, and a warning for each setting that differs from it."""
    found = CheckpointManager(Path(config.output_dir) / "checkpoints").load_latest()
    if found is None:
        return None
    changes = _differences(found[1]["config"], to_dict(config))
    if changes:
        log.warning(f"continuing with other settings than the checkpoint's: {'; '.join(changes)}")
    return found


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    changes: list[str] = []
    for key, value in new.items():
        name = f"{prefix}{key}"
        if name in _FREE_KEYS:
            continue
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            changes += _differences(before, value, f"{name}.")
        elif before != value:
            changes.append(f"{name} {before} → {value}")
    return changes
