"""From patch tokens to one map per target (paper §3.1.2): neck, ×2 upsampling blocks, one small head per map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinocell.core.fields import SettingError, Settings, field

DecoderKind = Literal["transposed", "bilinear", "linear"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Settings):
    """Shape and regularisation of the decoder."""

    kind: DecoderKind = field(
        "transposed",
        "transposed: learned ×2 upsampling (the paper's); bilinear: ×2 resize and 3×3 conv; linear: one 1×1 conv",
    )
    neck_width: int = field(512, "channels after the neck; every ×2 block halves them", "channels", at_least=16)
    drop_rate: float = field(
        0.05, "share of feature channels zeroed in training after each ×2 block", at_least=0, below=1, advanced=True
    )
    detail_width: int = field(
        0,
        "width of a small convolutional branch that carries edges around the backbone: not the paper's (0 = none); "
        "a backbone trained from random weights learns many times sooner with 16",
        "channels",
        at_least=0,
    )
    detail_context: bool = field(
        False,
        "carry that branch down to the patches' resolution and merge it into the neck: convolutions see whole cells",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neck_width % 8:
            raise SettingError("neck_width", f"must be a multiple of 8, got {self.neck_width}")
        if self.detail_width % 8 or (self.detail_width and self.kind == "linear"):
            raise SettingError(
                "detail_width",
                f"{self.detail_width} with kind={self.kind}; use 0, or a multiple of 8 with kind=transposed or "
                "kind=bilinear",
            )
        if self.detail_context and not self.detail_width:
            raise SettingError(
                "detail_context", "needs the branch that it extends; set detail_width, for instance to 32"
            )


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
            self.upsample = nn.ModuleList()
            self.heads = nn.ModuleList(nn.Conv2d(embed_dim, 1, 1) for _ in range(channels))
            return
        width = config.neck_width
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )
        self.upsample = nn.ModuleList()
        widths = []
        for _ in range(blocks):
            narrower = max(width // 2, 16)
            double = _double(config.kind, width, narrower)
            self.upsample.append(nn.Sequential(*double, nn.ReLU(), nn.Dropout2d(config.drop_rate)))
            width = narrower
            widths.append(width)
        features = max(width // 2, 16)
        self.upsample.append(nn.Sequential(nn.Conv2d(width, features, 3, padding=1), nn.ReLU()))
        self.heads = nn.ModuleList(_head(features) for _ in range(channels))
        context = config.neck_width if config.detail_context else 0
        self.detail = Detail(config.detail_width, [*widths, features], context) if config.detail_width else None

    def forward(self, tokens: Tensor, crop: Tensor) -> Tensor:
        """Tokens [B, D, rows, columns] and the crop [B, 1, H, W] they come from → [B, K, H, W]."""
        size = (crop.shape[-2], crop.shape[-1])
        if not self.upsample:  # a linear map commutes with resizing: resize K maps, not D channels
            return _resize(torch.cat([head(tokens) for head in self.heads], dim=1), size)
        x = self.neck(tokens)
        details = self.detail(crop) if self.detail is not None else []
        if self.detail is not None and self.detail.merge_context is not None:
            x = x + self.detail.merge_context(torch.cat([x, _resize(details.pop(0), x.shape[-2:])], dim=1))
        for level, block in enumerate(self.upsample):
            x = block(x)
            if level == len(self.upsample) - 1:
                x = _resize(x, size)
            if self.detail is not None:
                x = x + self.detail.merge[level](torch.cat([x, _resize(details[level], x.shape[-2:])], dim=1))
        return torch.cat([head(x) for head in self.heads], dim=1)


class Detail(nn.Module):
    """Features of the crop itself at each resolution of the decoder, and the convolutions that merge them in.

    A patch token covers 8 × 8 px in one vector; where exactly an edge runs inside it takes a ViT long to learn.

    Args:
        width: channels at full resolution; doubled with every halving of the resolution, up to 4 × `width`.
        decoder_widths: the decoder's channels at each of its levels, coarsest first; the last two are full resolution.
        neck_width: channels of the neck that one more, coarser stage is merged into; 0 = no such stage.
    """

    def __init__(self, width: int, decoder_widths: list[int], neck_width: int = 0) -> None:
        super().__init__()
        levels = max(len(decoder_widths) - 1, 1)
        widths = [min(width * 2**level, 4 * width) for level in range(levels)]  # finest first
        self.stages = nn.ModuleList()
        before = 1
        for level, channels in enumerate(widths):
            self.stages.append(_stage(before, channels, 1 if level == 0 else 2))
            before = channels
        coarse_to_fine = [*reversed(widths), widths[0]][-len(decoder_widths) :]
        self.merge = nn.ModuleList(
            nn.Conv2d(d + w, d, 3, padding=1) for d, w in zip(decoder_widths, coarse_to_fine, strict=True)
        )
        self.context: nn.Module | None = None
        self.merge_context: nn.Module | None = None
        if neck_width:
            self.context = _stage(before, 2 * before, 2)
            self.merge_context = nn.Conv2d(neck_width + 2 * before, neck_width, 3, padding=1)

    def forward(self, crop: Tensor) -> list[Tensor]:
        """[B, 1, H, W] → one feature map for each level of the decoder, coarsest first; that of the neck leads."""
        # One channel has no order in memory: without this the branch runs channels first, and every merge converts it.
        crop = crop.clone(memory_format=torch.channels_last)
        features = []
        for stage in self.stages:
            crop = stage(crop)
            features.append(crop)
        context = [] if self.context is None else [self.context(features[-1])]
        return [*context, *[*reversed(features), features[0]][-len(self.merge) :]]

    def merges(self) -> list[nn.Module]:
        """The convolutions that add this branch to the decoder."""
        return [*self.merge, *([] if self.merge_context is None else [self.merge_context])]


def _stage(before: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, channels, 3, stride=stride, padding=1),
        nn.GroupNorm(channels // 8, channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
    )


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
