"""Stage 2: train a decoder and a backbone on labelled cells."""

from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.inspect import inspect_datasets
from dinocell.finetune.trainer import run

__all__ = ["FinetuneConfig", "inspect_datasets", "run"]
