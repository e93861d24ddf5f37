"""From patch tokens to one map per target (paper §3.1.2): neck, ×2 upsampling blocks, one small head per map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_never

from dinocell.config import field
from dinocell.errors import ConfigError

DecoderKind = Literal["transposed", "bilinear", "linear"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape and regularisation of the decoder."""

    kind: DecoderKind = field(
        "transposed",
        "transposed: learned ×2 upsampling (the paper's); bilinear: ×2 resize and 3×3 conv; linear: one 1×1 conv",
    )
    neck_width: int = field(512, "channels after the neck; every ×2 block halves them", unit="channels")
    drop_rate: float = field(0.05, "share of feature channels zeroed in training after each ×2 block")

    def __post_init__(self) -> None:
        if self.kind not in get_args(DecoderKind):
            raise ConfigError(f"kind: '{self.kind}' is unknown; choose one of {', '.join(get_args(DecoderKind))}")
        if self.neck_width < 16 or self.neck_width % 8:
            raise ConfigError(f"neck_width: {self.neck_width}; use a multiple of 8, at least 16")
        if not 0 <= self.drop_rate < 1:
            raise ConfigError(f"drop_rate: {self.drop_rate}; it must lie in [0, 1)")


class LayerNorm2d(nn.Module):
    """Normalise over the channels of every pixel: [B, C, H, W] → the same."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight, self.bias, self.eps)  # [B, H, W, C]
        return normed.permute(0, 3, 1, 2)


def upsampling_blocks(crop: int, grid: int) -> int:
    """Number of ×2 blocks between a `grid` of patches and a `crop` in px: floor(log2(crop / grid)), at least 0."""
    return max(0, math.floor(math.log2(crop / grid)))


class Decoder(nn.Module):
    """Patch tokens as a feature map → raw maps (no activation on the output) at the size asked for.

    Args:
        config: kind, widths, dropout.
        embed_dim: channels D of the patch tokens.
        channels: number of maps K.
        blocks: ×2 blocks, see `upsampling_blocks`.
    """

    def __init__(self, config: DecoderConfig, embed_dim: int, channels: int, blocks: int) -> None:
        super().__init__()
        if config.kind == "linear":
            self.neck: nn.Module = nn.Identity()
            self.upsample: nn.Module = nn.Identity()
            self.heads = nn.ModuleList(nn.Conv2d(embed_dim, 1, 1) for _ in range(channels))
            return
        width = config.neck_width
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )
        steps: list[nn.Module] = []
        for _ in range(blocks):
            narrower = max(width // 2, 16)
            steps += [*_double(config.kind, width, narrower), nn.ReLU(), nn.Dropout2d(config.drop_rate)]
            width = narrower
        features = max(width // 2, 16)
        self.upsample = nn.Sequential(*steps, nn.Conv2d(width, features, 3, padding=1), nn.ReLU())
        self.heads = nn.ModuleList(_head(features) for _ in range(channels))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, D, rows, columns] → [B, K, *size]."""
        x = self.upsample(self.neck(tokens))
        if isinstance(self.upsample, nn.Identity):  # a linear map commutes with resizing: resize K maps, not D channels
            return _resize(torch.cat([head(x) for head in self.heads], dim=1), size)
        x = _resize(x, size)
        return torch.cat([head(x) for head in self.heads], dim=1)


def _double(kind: Literal["transposed", "bilinear"], width: int, narrower: int) -> list[nn.Module]:
    match kind:
        case "transposed":
            return [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)]
        case "bilinear":
            resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            return [resize, nn.Conv2d(width, narrower, 3, padding=1)]
        case _:
            assert_never(kind)


def _head(width: int) -> nn.Sequential:
    half, quarter = max(width // 2, 8), max(width // 4, 8)
    return nn.Sequential(
        nn.Conv2d(width, half, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(half, quarter, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(quarter, 1, 1),
    )


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
