"""Weights and inputs from a formula, so that golden outputs need no stored weights.

Values come from PCG64's raw stream (which NumPy promises never to change), seeded by the CRC-32 of the name.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1), determined by `name` and `shape`."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 value of a parameter, of a size that lets every block move the tokens noticeably."""
    values = uniform(name, shape)
    if name.endswith(("gamma", "lambda1")):
        values = 0.5 + 0.25 * values
    elif "norm" in name and name.endswith("weight"):
        values = 1 + 0.2 * values
    elif name.endswith("bias"):
        values = 0.2 * values
    elif name.endswith("weight"):
        values = values * np.sqrt(3 / np.prod(shape[1:]))
    return torch.from_numpy(values).float()


def fill(model: Any) -> Any:
    """Overwrite every parameter by `value` of its name; returns the model in evaluation mode."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value(name, tuple(parameter.shape)))
    return model.eval()


def image(shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 input of roughly unit variance."""
    return torch.from_numpy(1.7 * uniform("input", shape)).float()


def mask(images: int, patches: int) -> torch.Tensor:
    """About a third of the patches of every image but the first."""
    chosen = torch.from_numpy(uniform("mask", (images, patches)) > 0.33)
    chosen[0] = False
    return chosen
