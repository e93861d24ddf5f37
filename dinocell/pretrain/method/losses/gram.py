"""Gram anchoring: patches stay as alike as the initial backbone had them (DINOv3, arXiv:2508.10104)."""

import torch
import torch.nn.functional as F
from torch import Tensor

PATCHES = 1024  # of an image that are compared: the matrices grow with the square


def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities of all pairs of patches, in float32 under any autocast.

    Args:
        student: patch tokens of unmasked crops, [B, N, D].
        anchor: those of the frozen backbone for the same crops, [B, N, D'].

    Returns:
        Scalar in [0, 4]; 0 without crops.
    """
    with torch.autocast(student.device.type, enabled=False):
        if not len(student):
            return student.sum() * 0.0
        stride = -(-student.shape[1] // PATCHES)
        ours, theirs = (F.normalize(tokens[:, ::stride].float(), dim=-1) for tokens in (student, anchor))
        return (ours @ ours.mT - theirs @ theirs.mT).square().mean()  # of [B, n, n]
