"""Stage 1: continued DINOv2/iBOT pretraining on unlabelled microscopy crops."""

from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.trainer import run

__all__ = ["PretrainConfig", "run"]
