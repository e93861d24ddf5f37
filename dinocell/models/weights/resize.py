"""Carrying patch filters and positions from one resolution, patch size or channel count to another.

Every function is pure; filters are [D, C, P, P], biases [D], position grids [1, N, D].
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

PatchResize = Literal["pinv", "bicubic", "bicubic_scaled"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def interpolate_grid(positions: Tensor, size: tuple[int, int], *, antialias: bool, offset: float) -> Tensor:
    """Bicubic interpolation of a square position grid, as upstream DINOv2.

    A nonzero `offset` is added to the target size before the scale is computed, and that scale (not the size) drives
    the sampling: weights without registers were trained so (0.1, no antialias); reg4 weights use 0.0 with antialias.

    Args:
        positions: [1, M·M, D] float32.
        size: rows and columns of the result.

    Returns:
        [1, rows·columns, D].
    """
    side = math.isqrt(positions.shape[1])
    grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [1, D, M, M]
    if offset:
        scale = ((size[0] + offset) / side, (size[1] + offset) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        grid = F.interpolate(grid, size=size, mode="bicubic", antialias=antialias)
    assert grid.shape[-2:] == size, f"{tuple(grid.shape[-2:])} instead of {size}"
    return grid.permute(0, 2, 3, 1).flatten(1, 2)  # [1, rows·columns, D]


def resize_patch_filters(weight: Tensor, patch: int, method: PatchResize = "pinv") -> Tensor:
    """Patch filters [D, C, P, P] for another patch side, [D, C, patch, patch].

    pinv: FlexiViT's pseudo-inverse (arXiv:2212.08013, eq. 4) of the antialiased resize, so that a resized patch gives
        the embedding the original patch gave (as nearly as least squares can).
    bicubic: plain resize of the filters, which shrinks embeddings by (patch / P)².
    bicubic_scaled: the same, times (P / patch)².
    """
    old = weight.shape[-1]
    if old == patch:
        return weight
    match method:
        case "pinv":
            resize = _resize_matrix(old, patch)  # [patch, P], one axis; the image operator is its Kronecker square
            inverse = torch.linalg.pinv(resize.T)  # [patch, P]
            resized = torch.einsum("yh,xw,dchw->dcyx", inverse, inverse, weight.double())
        case "bicubic" | "bicubic_scaled":
            resized = F.interpolate(weight.double(), size=(patch, patch), mode="bicubic")
            if method == "bicubic_scaled":
                resized = resized * (old / patch) ** 2
        case _:
            assert_never(method)
    return resized.to(weight.dtype)


def _resize_matrix(old: int, new: int) -> Tensor:
    """The linear map [new, old] that antialiased bicubic resizing is along one axis (it is separable)."""
    basis = torch.eye(old, dtype=torch.float64).reshape(old, 1, old, 1).expand(old, 1, old, 2)
    columns = F.interpolate(basis, size=(new, 2), mode="bicubic", antialias=True)[:, 0, :, 0]  # [old, new]
    return columns.T


def fold_rgb_to_gray(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Filters [D, 1, P, P] and bias on gray x in [0, 1] equal to RGB filters on the ImageNet-normalised (x, x, x).

    Σ_c w_c (x − m_c) / s_c = x · Σ_c w_c / s_c − Σ_c (m_c / s_c) Σ w_c: exact, with a third of the input.
    """
    mean, std = _imagenet(weight)
    scaled = weight.double() / std  # [D, 3, P, P]
    shift = (scaled * mean).sum((1, 2, 3))
    gray_bias = (0 if bias is None else bias.double()) - shift
    return scaled.sum(1, keepdim=True).to(weight.dtype), gray_bias.to(weight.dtype)


def unfold_gray_to_rgb(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """RGB filters [D, 3, P, P] on ImageNet-normalised input equal, for a gray image, to gray filters on x in [0, 1].

    A third of the gray filter per channel, with the normalisation undone: x = s_c y_c + m_c. Colour images are
    averaged over their channels. Exact for gray images; `fold_rgb_to_gray` inverts it.
    """
    mean, std = _imagenet(weight)
    third = weight.double() / 3  # [D, 1, P, P]
    rgb = third * std  # [D, 3, P, P]
    rgb_bias = bias.double() + third.sum((1, 2, 3)) * mean.sum()
    return rgb.to(weight.dtype), rgb_bias.to(weight.dtype)


def _imagenet(weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64, device=weight.device).reshape(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64, device=weight.device).reshape(1, 3, 1, 1)
    return mean, std
