"""The losses of DINOv2 pretraining (DINO, iBOT, KoLeo), Gram anchoring, and the centring of the targets."""

from dinocell.pretrain.method.losses.centering import SoftmaxCenter, sinkhorn_knopp
from dinocell.pretrain.method.losses.dino import cross_entropy, dino_global_loss, dino_local_loss
from dinocell.pretrain.method.losses.gram import gram_loss
from dinocell.pretrain.method.losses.ibot import ibot_loss
from dinocell.pretrain.method.losses.koleo import koleo_loss

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
