"""The losses of DINOv2 pretraining (DINO, iBOT, KoLeo), Gram anchoring, and the centring of the targets."""

from dinocell.pretrain.losses.centering import SoftmaxCenter, sinkhorn_knopp
from dinocell.pretrain.losses.dino import cross_entropy, dino_global_loss, dino_local_loss
from dinocell.pretrain.losses.gram import gram_loss
from dinocell.pretrain.losses.ibot import ibot_loss
from dinocell.pretrain.losses.koleo import koleo_loss

__all__ = [
    "SoftmaxCenter",
    "cross_entropy",
    "dino_global_loss",
    "dino_local_loss",
    "gram_loss",
    "ibot_loss",
    "koleo_loss",
    "sinkhorn_knopp",
]
