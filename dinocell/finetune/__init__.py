"""Stage 2: train a decoder and a backbone on labelled cells."""

from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.run import run

__all__ = ["FinetuneConfig", "run"]
