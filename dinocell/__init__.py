"""DINOCell: self-supervised pretraining and fine-tuning of cell-segmentation models on microscopy.

The names below are loaded on first use, so that `import dinocell` stays quick and needs no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads sleep instead of spinning. Beside one other busy process, training with spinning threads took
# four times as long (2.2 against 0.55 s a step on 2 cores). Only heeded when set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Operations that Apple's Metal lacks run on the CPU instead of failing. Heeded like the above.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dinocell import curation, evaluation, finetune, metrics, models, objectives, pretrain, report, segmentation
    from dinocell.segmentation import Segmenter as Segmenter
    from dinocell.segmentation import load_model as load_model
    from dinocell.segmentation import segment as segment

_FUNCTIONS = dict.fromkeys(("segment", "load_model", "Segmenter"), "dinocell.segmentation")
_MODULES = (
    "curation",
    "evaluation",
    "finetune",
    "metrics",
    "models",
    "objectives",
    "pretrain",
    "report",
    "segmentation",
)

__all__ = [
    "Segmenter",
    "__version__",
    "curation",
    "evaluation",
    "finetune",
    "load_model",
    "metrics",
    "models",
    "objectives",
    "pretrain",
    "report",
    "segment",
    "segmentation",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"dinocell.{name}")
    raise AttributeError(f"module 'dinocell' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
