"""The vision transformer of DINOv2 (arXiv:2304.07193), state-dict compatible, for gray or RGB images.

A list of crop groups goes through the network in one pass: norms and matrix products see all tokens packed together,
attention stays within each image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinocell.core import log
from dinocell.core.fields import SettingError, Settings, field
from dinocell.models.vit.attention import Backend, choose_backend, prepare_for_compile
from dinocell.models.vit.block import NORM_EPS, Block
from dinocell.models.weights.resize import fold_rgb_to_gray, interpolate_grid

Arch = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"]

# width, depth, heads
ARCHITECTURES: dict[str, tuple[int, int, int]] = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}
# One gray channel of ImageNet's statistics: the mean of the three channels' means and standard deviations.
GRAY_MEAN = 0.449
GRAY_STD = 0.226


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Settings):
    """Shape and regularisation of a backbone."""

    arch: Arch = field("vit_base", "size (vit_giant2: with SwiGLU)")
    patch_size: int = field(8, "side of a patch", "px", at_least=1)
    image_size: int = field(
        512,
        "image side that the stored position grid covers; other sizes interpolate",
        "px",
        at_least=1,
        advanced=True,
    )
    in_channels: int = field(
        1,
        "1: gray in [0, 1], normalisation folded in; 3: ImageNet-normalised RGB",
        one_of=(1, 3),
        advanced=True,
    )
    registers: int = field(0, "register tokens (4 in DINOv2's reg4 weights)", at_least=0, advanced=True)
    drop_path: float = field(
        0.0, "share of the images of a batch that skip each residual branch in training", at_least=0, below=1
    )
    layerscale_init: float = field(
        1e-5, "initial LayerScale factor; overwritten by loaded weights", at_least=0, advanced=True
    )
    interpolate_antialias: bool = field(
        False, "antialias when positions are interpolated (True for reg4 weights)", advanced=True
    )
    interpolate_offset: float = field(
        0.1, "added to the target grid in interpolation (0.0 for reg4 weights)", at_least=0, advanced=True
    )
    depth: int | None = field(
        None, "number of blocks, when not the architecture's own", "blocks", at_least=1, advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            below = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise SettingError(
                "image_size",
                f"{self.image_size} px is not a multiple of patch_size={self.patch_size}; use {below} or "
                f"{below + self.patch_size}",
            )

    @property
    def embed_dim(self) -> int:
        """Width D of a token."""
        return ARCHITECTURES[self.arch][0]

    @property
    def num_blocks(self) -> int:
        """`depth`, or the architecture's own."""
        return self.depth if self.depth is not None else ARCHITECTURES[self.arch][1]

    @property
    def num_heads(self) -> int:
        """Attention heads (64 channels each)."""
        return ARCHITECTURES[self.arch][2]

    @property
    def grid(self) -> int:
        """Patches along one side of the stored position grid."""
        return self.image_size // self.patch_size


class Features(TypedDict):
    """Output of a backbone, with upstream's names; R registers, N patches, D channels."""

    x_norm_clstoken: Tensor  # [B, D]
    x_norm_regtokens: Tensor  # [B, R, D]
    x_norm_patchtokens: Tensor  # [B, N, D], row by row
    x_prenorm: Tensor  # [B, 1 + R + N, D]
    masks: Tensor | None  # [B, N] bool


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: [B, C, H, W] → [B, N, D]."""

    def __init__(self, in_channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError when a side is not a multiple of the patch."""
        for side in x.shape[-2:]:
            if side % self.patch_size:
                raise ValueError(f"image {x.shape[-2]}×{x.shape[-1]} px: not a multiple of the patch {self.patch_size}")
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)  # [B, N, D]
        return out


class VisionTransformer(nn.Module):
    """DINOv2's backbone.

    Input [B, C, H, W]: C = 1 gray in [0, 1], or C = 3 RGB normalised by ImageNet's mean and standard deviation.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = dim = config.embed_dim
        self.patch_size = config.patch_size
        self.in_channels = config.in_channels
        self.depth = config.num_blocks
        self.registers = config.registers
        self.activation_checkpointing = False
        self.attention_backend: Backend | Literal["auto"] = "auto"
        self.load_report: object | None = None

        self.patch_embed = PatchEmbed(config.in_channels, config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                ffn="swiglu" if config.arch == "vit_giant2" else "mlp",
                layerscale_init=config.layerscale_init,
                drop_path=config.drop_path,
            )
            for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self._initialize()

    def _initialize(self) -> None:
        """As upstream; gray patch filters start as folded RGB ones, so that their input is standardised."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.in_channels == 1:
            rgb = nn.Conv2d(3, self.embed_dim, self.patch_size)
            weight, bias = fold_rgb_to_gray(rgb.weight.detach(), rgb.bias.detach() if rgb.bias is not None else None)
            with torch.no_grad():
                self.patch_embed.proj.weight.copy_(weight)
                assert self.patch_embed.proj.bias is not None
                self.patch_embed.proj.bias.copy_(bias)

    def compile_blocks(self, *, backend: str = "inductor", fullgraph: bool = False) -> None:
        """torch.compile every block in place; state-dict keys stay as they are."""
        prepare_for_compile()
        for block in self.blocks:
            block.compile(backend=backend, fullgraph=fullgraph)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding [1, 1 + N, D] of an image of `height` × `width` px, interpolated where needed."""
        rows, columns = height // self.patch_size, width // self.patch_size
        stored = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (stored, stored):
            return self.pos_embed
        patches = interpolate_grid(
            self.pos_embed[:, 1:].float(),
            (rows, columns),
            antialias=self.config.interpolate_antialias,
            offset=self.config.interpolate_offset,
        )
        return torch.cat([self.pos_embed[:, :1].float(), patches], dim=1).to(self.pos_embed.dtype)

    def embed(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Tokens before the first block: [B, C, H, W] → [B, 1 + R + N, D]; masked patches become the mask token."""
        tokens = self.patch_embed(x)  # [B, N, D]
        if masks is not None:
            tokens = torch.where(masks.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        batch = tokens.shape[0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(*x.shape[-2:])
        if self.register_tokens is None:
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(batch, -1, -1), tokens[:, 1:]], dim=1)

    @overload
    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> Features: ...
    @overload
    def forward_features(self, x: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]: ...
    def forward_features(
        self, x: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor | None] | None = None
    ) -> Features | list[Features]:
        """Features of one batch, or of a list of crop batches in one pass.

        Args:
            x: [B, C, H, W], or a list of them with their own B, H and W.
            masks: bool [B, N], True where the patch is replaced by the mask token; a list where `x` is one.

        Returns:
            Upstream's dictionary, one per entry of a list.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor)
            return self._features([x], [masks])[0]
        per_crop = [None] * len(x) if masks is None else list(masks)
        return self._features(list(x), per_crop)

    @overload
    def forward(self, x: Tensor, masks: Tensor | None = None) -> Features: ...
    @overload
    def forward(self, x: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]: ...
    def forward(
        self, x: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor | None] | None = None
    ) -> Features | list[Features]:
        """The same as `forward_features`."""
        return self.forward_features(x, masks)  # type: ignore[arg-type]

    def _features(self, x: list[Tensor], masks: Sequence[Tensor | None]) -> list[Features]:
        crops = [self.embed(image, mask) for image, mask in zip(x, masks, strict=True)]
        backend = self._backend(crops)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                crops = checkpoint(block, crops, backend, use_reentrant=False)
            else:
                crops = block(crops, backend)
        return [self._split(tokens, mask) for tokens, mask in zip(crops, masks, strict=True)]

    def _split(self, tokens: Tensor, masks: Tensor | None) -> Features:
        normed = self.norm(tokens)
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1 : 1 + self.registers],
            "x_norm_patchtokens": normed[:, 1 + self.registers :],
            "x_prenorm": tokens,
            "masks": masks,
        }

    def _backend(self, crops: list[Tensor]) -> Backend:
        if self.attention_backend != "auto":
            return self.attention_backend
        device, dtype = crops[0].device, crops[0].dtype
        if device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        backend, reason = choose_backend(device, dtype, len(crops))
        if self.training and len(crops) > 1:
            _announce(backend, reason)
        return backend


@functools.cache
def _announce(backend: Backend, reason: str) -> None:
    """Name the kernel in the log of a multi-crop training, once."""
    log.info(f"attention: {backend} ({reason})")
