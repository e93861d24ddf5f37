"""DINO loss on CLS tokens (Caron et al. 2021, arXiv:2104.14294, eq. 1-3), weighted as in DINOv2.

With L local and 2 global crops there are n = 2 L + 2 (student, teacher) pairs; every pair has weight 1 / n.
"""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(student_logits: Tensor, teacher_probabilities: Tensor, temperature: float) -> Tensor:
    """-sum_k t_k log softmax(s / temperature)_k in float32: [..., K], [..., K] (broadcast) -> [...]."""
    log_probabilities = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return -(teacher_probabilities * log_probabilities).sum(dim=-1)


def dino_local_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Every local crop predicts both global crops.

    Args:
        student: logits of the local crops, [L, B, K].
        teacher: targets of the global crops, [2, B, K].
        temperature: student temperature.

    Returns:
        Scalar: sum over the 2 L pairs of the batch mean, divided by n = 2 L + 2.
    """
    pairs = 2 * student.shape[0] + 2
    # The sum over both teachers of a cross-entropy is the cross-entropy with the summed targets.
    per_sample = cross_entropy(student, teacher.sum(dim=0), temperature)  # [L, B]
    return per_sample.mean(dim=1).sum() / pairs


def dino_global_loss(student: Tensor, teacher: Tensor, local_crops: int, temperature: float = 0.1) -> Tensor:
    """Each global crop predicts the other one.

    Args:
        student: logits of the global crops, [2, B, K].
        teacher: targets of the global crops in the same order, [2, B, K].
        local_crops: L, for the shared denominator.
        temperature: student temperature.

    Returns:
        Scalar: mean over the 2 B crops, times 2, divided by n = 2 L + 2.
    """
    per_sample = cross_entropy(student, teacher.flip(0), temperature)  # [2, B]
    return per_sample.mean() * 2 / (2 * local_crops + 2)
