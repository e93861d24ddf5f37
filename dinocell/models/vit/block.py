"""The pre-norm transformer block of DINOv2: LayerScale, MLP or SwiGLU, drop path on a random subset of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinocell.models.vit.attention import Attention, Backend, Groups

NORM_EPS = 1e-6


class Mlp(nn.Module):
    """Linear → GELU (exact) → Linear, D → 4·D → D."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwiGLU(nn.Module):
    """w3(silu(a) · b) with (a, b) = w12(x); used by ViT-g. Its width is ⅔ of the MLP's, rounded up to 8s."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        width = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on the output of a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def drop_path_subset(images: int, rate: float) -> int:
    """Number of `images` that compute a residual branch: max(int(b · (1 − p)), 1), as DINOv2."""
    return max(int(images * (1 - rate)), 1)


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), on a list of crop groups in one pass."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        layerscale_init: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, layerscale_init)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGLU(dim, hidden) if ffn == "swiglu" else Mlp(dim, hidden)
        self.ls2 = LayerScale(dim, layerscale_init)
        self.drop_path = drop_path

    def forward(self, crops: list[Tensor], backend: Backend = "sdpa") -> list[Tensor]:
        """Tokens of every crop group, each [B, N, D] with its own B and N → the same shapes."""

        def attention(x: Tensor, groups: Groups) -> Tensor:
            return self.ls1(self.attn(self.norm1(x), groups, backend))

        def mlp(x: Tensor, groups: Groups) -> Tensor:
            return self.ls2(self.mlp(self.norm2(x)))

        return self._residual(self._residual(crops, attention), mlp)

    def _residual(self, crops: list[Tensor], branch: Callable[[Tensor, Groups], Tensor]) -> list[Tensor]:
        if self.training and self.drop_path > 0:
            return _residual_on_subset(crops, branch, self.drop_path)
        return [x + y for x, y in zip(crops, _branch_on_packed(crops, branch), strict=True)]


def _branch_on_packed(crops: Sequence[Tensor], branch: Callable[[Tensor, Groups], Tensor]) -> list[Tensor]:
    groups = [(x.shape[0], x.shape[1]) for x in crops]
    packed = crops[0].flatten(0, 1) if len(crops) == 1 else torch.cat([x.flatten(0, 1) for x in crops])  # [T, D]
    parts = branch(packed, groups).split([b * n for b, n in groups])
    return [part.unflatten(0, group) for part, group in zip(parts, groups, strict=True)]  # each [B, N, D]


def _residual_on_subset(crops: list[Tensor], branch: Callable[[Tensor, Groups], Tensor], rate: float) -> list[Tensor]:
    """Drop path as DINOv2: a random subset of the images of each crop group computes the branch, scaled by b / subset.

    Dropped images cost nothing, and the expectation of the residual is unchanged.
    """
    kept = [torch.randperm(x.shape[0], device=x.device)[: drop_path_subset(x.shape[0], rate)] for x in crops]
    subsets = [x.index_select(0, index) for x, index in zip(crops, kept, strict=True)]  # each [subset, N, D]
    residuals = _branch_on_packed(subsets, branch)
    return [
        torch.index_add(x, 0, index, y.to(x.dtype), alpha=x.shape[0] / len(index))
        for x, index, y in zip(crops, kept, residuals, strict=True)
    ]
