"""Assemble a run: backbone, student and teacher, optimizer, and the checkpoint to continue from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dinocell import models
from dinocell.core import log
from dinocell.core.config import from_dict
from dinocell.core.errors import CheckpointError, ConfigError, first_line
from dinocell.models import VisionTransformer, ViTConfig
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.method.student_teacher import StudentTeacher
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.optim import adamw, parameter_groups
from dinocell.training.resume import Change, check_resumable


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


def restore_backbone(state: dict[str, Any]) -> VisionTransformer:
    """Make an empty backbone of the checkpoint's shape; its weights come with the student's and teacher's."""
    return VisionTransformer(from_dict(ViTConfig, state["config"]["model"], "checkpoint"))


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


def load_latest(config: PretrainConfig) -> tuple[int, dict[str, Any], tuple[Change, ...]] | None:
    """Find the newest whole checkpoint of the run's folder; returns its step, its state and what changes from then on.

    Raises:
        ConfigError: a setting differs that may not, or the run is already longer than asked.
    """
    found = CheckpointManager(Path(config.output_dir) / "checkpoints").load_latest()
    if found is None:
        return None
    step, state = found
    # Loaded weights bring their own registers and position rules: the recipe may name them as it did, or as they are.
    asked = {**state["config"], "model": state["asked_model"]}
    changes = check_resumable(config, asked, state["config"], where=contains_run(config))
    if step > config.optim.total_steps:
        raise ConfigError(
            f"optim.epochs: {config.optim.epochs:g} epochs are {config.optim.total_steps} steps, but the run in "
            f"output_dir {config.output_dir!r} has made {step}; give at least {step / config.optim.epoch_steps:g}"
        )
    return step, state, changes


def contains_run(config: PretrainConfig) -> str:
    """Begin a message about the run that is in the output folder."""
    return f"output_dir: {config.output_dir!r} contains a run"
