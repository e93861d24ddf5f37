"""Tensors of a .safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinocell.core.errors import CheckpointError, first_line

State = dict[str, Tensor]


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors of a .safetensors file in float32, and its metadata; CheckpointError in one line."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name).float() for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({first_line(error)}); get it again") from error
