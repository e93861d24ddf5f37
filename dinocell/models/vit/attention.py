"""Multi-head self-attention over packed tokens, with the kernel chosen by device and dtype.

Tokens of every crop of a step are packed in one [T, D] tensor; a *group* (images, tokens) describes each run of
equally long images in it. The matrix products see all T tokens at once; only the softmax is per image.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinocell.models.vit.cpu_attention import attend_on_cpu

Backend = Literal["sdpa", "varlen", "xformers"]
Groups = Sequence[tuple[int, int]]


def choose_backend(device: torch.device, dtype: torch.dtype, groups: int = 2) -> tuple[Backend, str]:
    """The attention kernel for a device, a compute dtype and the number of crop resolutions, with the reason in words.

    `sdpa` runs everywhere. The packed kernels are CUDA-only and half-precision-only, and only save work when crops of
    several lengths meet in one pass: importability alone says nothing (xformers imports beside a CPU-only torch).
    """
    if device.type != "cuda":
        return "sdpa", f"packed kernels need CUDA, the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return "sdpa", f"packed kernels need bfloat16 or float16, the tokens are {str(dtype).removeprefix('torch.')}"
    if groups < 2:
        return "sdpa", "all images have one length"
    if torch.cuda.get_device_capability(device) >= (8, 0) and importlib.util.find_spec("torch.nn.attention.varlen"):
        return "varlen", "CUDA, half precision, several crop lengths"
    if importlib.util.find_spec("xformers"):
        return "xformers", "CUDA, half precision, several crop lengths, no varlen kernel"
    return "sdpa", "neither varlen nor xformers is available"


def attend(qkv: Tensor, groups: Groups, backend: Backend) -> Tensor:
    """Softmax attention within every image of a packed batch.

    Args:
        qkv: [T, 3, heads, head_dim], T = Σ images · tokens over the groups.
        groups: (images, tokens per image) of every run of equally long images, in order.
        backend: the kernel; all give the same values up to rounding.

    Returns:
        [T, heads · head_dim].
    """
    match backend:
        case "sdpa":
            return _attend_sdpa(qkv, groups)
        case "varlen":
            return _attend_varlen(qkv, groups)
        case "xformers":
            return _attend_xformers(qkv, groups)
        case _:
            assert_never(backend)


def _attend_sdpa(qkv: Tensor, groups: Groups) -> Tensor:
    heads, head_dim = qkv.shape[2:]
    half_on_cpu = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    outputs = []
    for part, (images, tokens) in zip(qkv.split([b * n for b, n in groups]), groups, strict=True):
        q, k, v = part.reshape(images, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)  # 3 × [B, heads, N, head_dim]
        if half_on_cpu:
            out: Tensor = attend_on_cpu(q, k, v)  # [B, N, heads, head_dim]
        else:
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # [B, N, heads, head_dim]
        outputs.append(out.reshape(images * tokens, heads * head_dim))  # [B·N, D]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def sequence_lengths(groups: Groups) -> list[int]:
    """Tokens of every image of a packed batch, in order."""
    return [tokens for images, tokens in groups for _ in range(images)]


@functools.lru_cache(maxsize=64)
def _cumulative_lengths_once(groups: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    lengths = torch.tensor([0, *sequence_lengths(groups)], dtype=torch.int32)
    return lengths.cumsum(0, dtype=torch.int32).to(device)


def _cumulative_lengths(groups: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return _cumulative_lengths_once(groups, device)


def _attend_varlen(qkv: Tensor, groups: Groups) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    boundaries = _cumulative_lengths(tuple(groups), qkv.device)
    longest = max(tokens for _, tokens in groups)
    q, k, v = qkv.unbind(1)  # 3 × [T, heads, head_dim]
    out: Any = varlen_attn(q, k, v, boundaries, boundaries, longest, longest)
    return out.flatten(1)  # [T, D]


@functools.lru_cache(maxsize=64)
def _block_diagonal_mask(groups: tuple[tuple[int, int], ...]) -> Any:
    from xformers.ops import fmha

    return fmha.BlockDiagonalMask.from_seqlens(sequence_lengths(groups))


def _attend_xformers(qkv: Tensor, groups: Groups) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q, k, v = qkv.unsqueeze(0).unbind(2)  # 3 × [1, T, heads, head_dim]
    out: Tensor = memory_efficient_attention(q, k, v, attn_bias=_block_diagonal_mask(tuple(groups)))
    return out.flatten(2).squeeze(0)  # [T, D]


@functools.cache
def prepare_for_compile() -> None:
    """Tell torch.compile about the two functions that it must not trace; call it before compiling.

    As decorators they would import torch._dynamo, two to three seconds, whenever a model is only used.
    """
    global _attend_xformers
    # It must not be rebuilt, and wait for the device, in every step.
    torch.compiler.assume_constant_result(_cumulative_lengths)
    # Its mask is a Python object.
    _attend_xformers = torch.compiler.disable(_attend_xformers)


class Attention(nn.Module):
    """Multi-head self-attention with biases on the fused qkv and on the output projection (as upstream DINOv2)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, groups: Groups, backend: Backend = "sdpa") -> Tensor:
        """Packed tokens [T, D] → [T, D]; see `attend` for the groups."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [T, 3, heads, head_dim]
        out: Tensor = self.proj(attend(qkv, groups, backend))
        return out
