"""Stage 2: train a decoder and a backbone on labelled cells."""

from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.inspection import inspect_datasets
from dinocell.finetune.run import run

__all__ = ["FinetuneConfig", "inspect_datasets", "run"]
