"""The three losses of DINOv2 pretraining (DINO, iBOT, KoLeo) and the centring of the teacher's targets."""

from dinocell.pretrain.losses.centering import SoftmaxCenter, sinkhorn_knopp
from dinocell.pretrain.losses.dino import cross_entropy, dino_global_loss, dino_local_loss
from dinocell.pretrain.losses.ibot import ibot_loss
from dinocell.pretrain.losses.koleo import koleo_loss

__all__ = [
    "SoftmaxCenter",
    "cross_entropy",
    "dino_global_loss",
    "dino_local_loss",
    "ibot_loss",
    "koleo_loss",
    "sinkhorn_knopp",
]
