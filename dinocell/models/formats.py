"""Reading backbone weights of every published layout, and bringing their names to upstream DINOv2's.

A reader returns tensors by name; `canonical` recognises whose names they are and renames them. No shape is changed
here (see `weights.py`).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinocell.errors import CheckpointError

State = dict[str, Tensor]
# Where a training checkpoint keeps networks, in the order of preference: the teacher is the better backbone.
CONTAINERS = ("teacher", "model", "state_dict", "backbone", "student")


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors of a .safetensors file in float32, and its metadata; CheckpointError in one line."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name).float() for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({reason}); copy or download it again"
        ) from error
