"""The student, its EMA teacher, and the loss of one micro-batch (DINOv2, section 4; iBOT, section 3)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinocell.models import VisionTransformer
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD
from dinocell.pretrain.config import HeadConfig, PretrainConfig
from dinocell.pretrain.data.crops import Batch
from dinocell.pretrain.method.heads import DINOHead
from dinocell.pretrain.method.losses import (
    SoftmaxCenter,
    dino_global_loss,
    dino_local_loss,
    gram_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from dinocell.training.optim import local_parameters


class Output(NamedTuple):
    """Result of one micro-batch. The loss terms are weighted: `loss`, what is optimised, is exactly their sum."""

    losses: dict[str, Tensor]  # scalars: loss, and of dino_local, dino_global, ibot, koleo, gram those in use
    teacher_entropy: Tensor  # scalar, mean entropy of the DINO targets (of the iBOT targets without DINO), nats
    teacher_cls: Tensor  # [2 B, D], no gradient
    teacher_patches: Tensor  # [2 B, N, D], no gradient


class Targets(NamedTuple):
    """Targets of the student."""

    cls: Tensor | None  # [2, B, K], both global crops in the order of the batch
    patches: Tensor | None  # [M, K]
    cls_tokens: Tensor  # [2 B, D]
    patch_tokens: Tensor  # [2 B, N, D]


def network_input(crops: Tensor, channels: int) -> Tensor:
    """Gray uint8 [B, 1, H, W] -> float32: gray in [0, 1], or ImageNet-normalised RGB of three equal channels."""
    gray = crops.float() / 255
    if channels == 1:
        return gray
    mean, std = (gray.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (gray - mean) / std  # [B, 3, H, W]


class StudentTeacher(nn.Module):
    """Two networks of one shape: `student` learns by gradient, `teacher` follows it by EMA.

    Both are ModuleDicts with `backbone`, `dino_head` and `ibot_head` (a head only if its loss has a weight). The
    teacher is always in eval mode and never sees a gradient, a mask or a local crop.
    """

    def __init__(self, backbone: VisionTransformer, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = backbone.in_channels
        parts: dict[str, nn.Module] = {"backbone": backbone}
        if config.loss.dino_weight > 0:
            parts["dino_head"] = _head(backbone.embed_dim, config.dino_head)
        if config.loss.ibot_weight > 0:
            parts["ibot_head"] = _head(backbone.embed_dim, config.ibot_head)
        self.student = nn.ModuleDict(parts)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        # the backbone as it was at the start, for Gram anchoring; empty without it
        self.anchor = nn.ModuleDict()
        if config.loss.gram_weight > 0:
            self.anchor["backbone"] = copy.deepcopy(self.teacher["backbone"])
        self.centers = nn.ModuleDict()
        if config.loss.centering == "softmax":
            self.centers["dino_head"] = SoftmaxCenter(config.dino_head.prototypes)
            self.centers["ibot_head"] = SoftmaxCenter(config.ibot_head.prototypes)
        self.train()

    def train(self, mode: bool = True) -> StudentTeacher:
        """Set the student's mode; teacher and anchor stay in eval mode."""
        super().train(mode)
        self.teacher.eval()
        self.anchor.eval()
        return self

    def forward(self, batch: Batch, temperature: float) -> Output:
        """Loss terms of one micro-batch.

        Args:
            batch: crops and masks on the model's device.
            temperature: teacher temperature of this step.
        """
        global_crops = network_input(batch.global_crops, self.channels)
        targets = self._targets(global_crops, batch.mask_indices, temperature)
        images, local_count = len(batch.paths), batch.local_crops.shape[0] // len(batch.paths)
        crops, masks = [global_crops], [batch.masks]
        if local_count:
            crops.append(network_input(batch.local_crops, self.channels))
        features = self.student["backbone"](crops, [*masks, None][: len(crops)])
        cls = features[0]["x_norm_clstoken"]  # [2 B, D]
        local_cls = features[1]["x_norm_clstoken"] if local_count else cls[:0]  # [L B, D]

        losses: dict[str, Tensor] = {}
        if targets.cls is not None:
            losses |= self._dino(cls, local_cls, targets.cls, images)
        if targets.patches is not None:
            masked = features[0]["x_norm_patchtokens"].flatten(0, 1)[batch.mask_indices]  # [M, D]
            logits = self.student["ibot_head"](masked)  # [M, K]
            settings = self.config.loss
            term = ibot_loss(logits, targets.patches, batch.patch_weights, 2 * images, settings.student_temperature)
            losses["ibot"] = settings.ibot_weight * term
        if self.config.loss.koleo_weight > 0:
            # never between the two crops of one image: they are meant to be alike
            terms = [koleo_loss(half, self.config.loss.koleo_all_ranks) for half in cls.chunk(2)]
            losses["koleo"] = self.config.loss.koleo_weight * (terms[0] + terms[1])
        if self.config.loss.gram_weight > 0:
            whole = ~batch.masks.any(dim=1)  # [2 B]
            with torch.no_grad():
                anchor = self.anchor["backbone"](global_crops[whole])["x_norm_patchtokens"]
            term = gram_loss(features[0]["x_norm_patchtokens"][whole], anchor)
            losses["gram"] = self.config.loss.gram_weight * term
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return Output(losses, _entropy(targets), targets.cls_tokens, targets.patch_tokens)

    def _dino(self, cls: Tensor, local_cls: Tensor, targets: Tensor, images: int) -> dict[str, Tensor]:
        settings = self.config.loss
        logits = self.student["dino_head"](torch.cat([cls, local_cls]))  # [(2 + L) B, K]
        logits = logits.unflatten(0, (-1, images))  # [2 + L, B, K]
        local_count = logits.shape[0] - 2
        term = dino_global_loss(logits[:2], targets, local_count, settings.student_temperature)
        losses = {"dino_global": settings.dino_weight * term}
        if local_count:
            term = dino_local_loss(logits[2:], targets, settings.student_temperature)
            losses["dino_local"] = settings.dino_weight * term
        return losses

    @torch.no_grad()
    def _targets(self, global_crops: Tensor, mask_indices: Tensor, temperature: float) -> Targets:
        features = self.teacher["backbone"](global_crops)
        cls, patches = features["x_norm_clstoken"], features["x_norm_patchtokens"]
        cls_targets = patch_targets = None
        if "dino_head" in self.teacher:
            scores = self.teacher["dino_head"](cls)  # [2 B, K]
            cls_targets = self._assign("dino_head", scores, temperature).unflatten(0, (2, -1))  # [2, B, K]
        if "ibot_head" in self.teacher:
            scores = self.teacher["ibot_head"](patches.flatten(0, 1)[mask_indices])  # [M, K]
            patch_targets = self._assign("ibot_head", scores, temperature)
        return Targets(cls_targets, patch_targets, cls, patches)

    def _assign(self, head: str, scores: Tensor, temperature: float) -> Tensor:
        match self.config.loss.centering:
            case "sinkhorn":
                return sinkhorn_knopp(scores, temperature)
            case "softmax":
                targets: Tensor = self.centers[head](scores, temperature)
                return targets

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum x teacher + (1 - momentum) x student, every parameter in a few kernels."""
        torch._foreach_lerp_(local_parameters(self.teacher), local_parameters(self.student), 1 - momentum)

    def update_centers(self, keep: bool = True) -> None:
        """Take this step's teacher scores into the softmax centres, or forget them when the step is skipped."""
        for center in self.centers.values():
            assert isinstance(center, SoftmaxCenter)
            center.update(keep)


def _head(width: int, config: HeadConfig) -> DINOHead:
    return DINOHead(width, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck)


def _entropy(targets: Targets) -> Tensor:
    """Mean entropy of the targets in nats: log K when the teacher says nothing, 0 when it is certain."""
    probabilities = targets.cls if targets.cls is not None else targets.patches
    assert probabilities is not None
    per_sample = torch.special.entr(probabilities).sum(dim=-1)
    return per_sample.mean() if per_sample.numel() else per_sample.sum()
