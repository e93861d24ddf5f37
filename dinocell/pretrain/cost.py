"""Floating point operations of a training step, and the machine's rate of matrix products to compare them with."""

from __future__ import annotations

import time

import torch

from dinocell.models import VisionTransformer, forward_flops
from dinocell.models.vit.block import drop_path_subset
from dinocell.pretrain.config import PretrainConfig


def image_flops(config: PretrainConfig, backbone: VisionTransformer) -> float:
    """Operations (2 a multiply-add) of one training step per image: student forward and backward, teacher forward.

    A backward pass counts twice its forward. Images that drop path leaves out are not counted, the heads are.
    """
    model = backbone.config
    augment, batch = config.augment, config.optim.batch_size
    kept_global = drop_path_subset(2 * batch, model.drop_path) / batch
    kept_local = drop_path_subset(augment.local_crops * batch, model.drop_path) / batch if augment.local_crops else 0.0
    large, small = (
        forward_flops(backbone, torch.zeros(1, model.in_channels, side, side))
        for side in (augment.global_size, augment.local_size)
    )
    student = 3 * (kept_global * large + kept_local * small)
    masked_patches = sum(config.mask.ratio) / 2 * config.mask.probability * 2
    masked_patches *= (augment.global_size // model.patch_size) ** 2
    heads = 0.0
    for head, weight, student_tokens, teacher_tokens in (
        (config.dino_head, config.loss.dino_weight, 2.0 + augment.local_crops, 2.0),
        (config.ibot_head, config.loss.ibot_weight, masked_patches, masked_patches),
    ):
        layers = model.embed_dim * head.hidden + head.hidden**2 + head.bottleneck * (head.hidden + head.prototypes)
        heads += 2.0 * layers * (3 * student_tokens + teacher_tokens) * (weight > 0)
    unmasked = 2 * (1 - config.mask.probability) * (config.loss.gram_weight > 0)  # crops that the anchor sees too
    return student + (2 + unmasked) * large + heads


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """Measured floating point operations per second of a `size`^3 matrix product."""
    if device.type == "cuda":
        size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or best == float("inf"):
        _wait(device)
        begin = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
