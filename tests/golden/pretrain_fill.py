"""Weights and inputs that the recorder and the tests make alike, so that the golden file need not hold them."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 numbers that depend on the name only (NumPy's legacy stream is frozen)."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(stream.standard_normal(shape).astype(np.float32))


def crops(name: str, shape: tuple[int, ...]) -> Tensor:
    """uint8 images in [0, 255]: noise over a ramp, so that crops differ in more than noise."""
    ramp = torch.linspace(-1, 1, shape[-1]) * numbers(name + "/slope", (shape[0], 1, 1, 1))
    return (128 + 40 * (numbers(name, shape) + ramp)).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def fill(module: nn.Module, scale: float = 0.05) -> None:
    """Set every parameter from its name: norms and prototype gains near 1, LayerScale 0.5, the rest small."""
    for name, parameter in module.named_parameters():
        values = numbers(name, tuple(parameter.shape)) * scale
        if ("norm" in name and name.endswith("weight")) or name.endswith("weight_g"):
            values += 1
        elif name.endswith("gamma"):
            values += 0.5
        parameter.copy_(values)
