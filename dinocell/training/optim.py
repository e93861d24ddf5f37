"""Parameter groups with layer-wise decay, and the optimizer both stages use (DINOv2's rules, spec/ssl)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"(?:^|\.)blocks\.(?:\d+\.)?(\d+)\.")


def layer_id(name: str, depth: int) -> int:
    """Depth of a parameter: 0 for embeddings and tokens, 1…depth for the blocks, depth + 1 for everything after."""
    embeddings = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
    if any(part in name for part in embeddings):
        return 0
    match = _BLOCK.search(name)
    return int(match.group(1)) + 1 if match else depth + 1


def parameter_groups(
    module: nn.Module,
    *,
    depth: int,
    layer_decay: float = 1.0,
    patch_embed_multiplier: float = 0.2,
    name: str = "",
) -> list[dict[str, Any]]:
    """Sort a module's trainable parameters into optimizer groups.

    Each group has `params`, `lr_multiplier`, `wd_multiplier`, `is_last_layer` (the prototype layer, whose learning
    rate stays at 0 at first) and `name`. Weight decay is 0 for biases, norms and LayerScale; the position, class,
    register and mask tokens are decayed, as in DINOv2. The learning rate is multiplied by
    `layer_decay ** (depth + 1 - layer)` and, for the patch embedding, by `patch_embed_multiplier`.

    Args:
        depth: number of transformer blocks of the backbone inside `module` (0 for a head).
        name: prefix for the groups' names in logs.
    """
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for parameter_name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = layer_decay ** (depth + 1 - layer_id(parameter_name, depth)) if depth else 1.0
        if "patch_embed" in parameter_name:
            lr *= patch_embed_multiplier
        wd = 0.0 if _is_undecayed(parameter_name) else 1.0
        key = (lr, wd, "last_layer" in parameter_name)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "lr_multiplier": lr,
                "wd_multiplier": wd,
                "is_last_layer": key[2],
                "name": f"{name or 'model'}/lr×{lr:.3g}/wd×{wd:g}{'/last' if key[2] else ''}",
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _is_undecayed(name: str) -> bool:
    return name.endswith(".bias") or name == "bias" or "norm" in name or "gamma" in name


def adamw(groups: Sequence[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW over the groups; learning rate and decay are set every step by `set_schedule`."""
    return torch.optim.AdamW(list(groups), lr=0.0, betas=betas, fused=_all_fusable(groups))


def _all_fusable(groups: Iterable[dict[str, Any]]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])


def set_schedule(
    optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, last_layer_lr: float | None = None
) -> None:
    """Set this step's values: `lr` and `weight_decay` times each group's multipliers.

    `last_layer_lr` replaces `lr` for the prototype layers (0 while they are frozen).
    """
    for group in optimizer.param_groups:
        rate = last_layer_lr if group.get("is_last_layer") and last_layer_lr is not None else lr
        group["lr"] = rate * group.get("lr_multiplier", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_multiplier", 1.0)


def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Clip the module's total gradient norm in place; returns the norm before clipping (0.0 without gradients)."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    if not parameters:
        return 0.0
    limit = max_norm if max_norm > 0 else float("inf")
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if is_shared(norm) else norm)  # type: ignore[attr-defined]


def is_shared(tensor: Tensor) -> bool:
    """True for a sharded tensor (DTensor); does not import torch.distributed.tensor."""
    return hasattr(tensor, "full_tensor")


def local_parameters(module: nn.Module) -> list[Tensor]:
    """This rank's share of every parameter; the parameters themselves where nothing is shared out."""
    return [p.to_local() if is_shared(p) else p for p in module.parameters()]  # type: ignore[attr-defined]
