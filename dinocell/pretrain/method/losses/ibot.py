"""iBOT loss on masked patch tokens (Zhou et al. 2022, arXiv:2111.07832, eq. 2), weighted as in DINOv2."""

from torch import Tensor

from dinocell.pretrain.method.losses.dino import cross_entropy


def ibot_loss(student: Tensor, teacher: Tensor, patch_weights: Tensor, images: int, temperature: float = 0.1) -> Tensor:
    """Masked patches of the student predict the teacher's view of the unmasked patch.

    Args:
        student: logits of the masked patches of all images, [M, K].
        teacher: targets of the same patches, [M, K].
        patch_weights: 1 / (number of masked patches in the patch's image), [M].
        images: global crops in the batch, masked or not (2 B).
        temperature: student temperature.

    Returns:
        Scalar: sum over patches of weight x cross-entropy, divided by `images`.
    """
    return (cross_entropy(student, teacher, temperature) * patch_weights).sum() / images
