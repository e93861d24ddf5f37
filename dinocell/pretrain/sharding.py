"""FSDP2: student, teacher and optimizer state shared out over the ranks; files contain whole tensors as without it.

Every block, every head and the rest of each backbone is one group, gathered for its forward and backward and freed
after it. Checkpoints are gathered, so that they load at any number of ranks, with or without FSDP2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dinocell.models import VisionTransformer
from dinocell.pretrain.method.student_teacher import StudentTeacher
from dinocell.training.optim import is_shared


def shard(model: StudentTeacher, dtype: torch.dtype) -> None:
    """Share the parameters of student and teacher out over all ranks, in place.

    Args:
        model: whole and equal on every rank.
        dtype: what autocast computes in; gradients are reduced in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs stay as they are: autocast decides per operation, as without FSDP2. It casts the weights of attention and
    # MLP, so these are gathered in half the bytes; the others (norms, scales, tokens, heads) it keeps in float32.
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    cast = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for networks in (model.student, model.teacher):
        for part in networks.values():
            for block in part.blocks if isinstance(part, VisionTransformer) else ():
                if dtype != torch.float32:
                    for name in ("attn", "mlp"):
                        fully_shard(block.get_submodule(name), mp_policy=cast, reshard_after_forward=True)
                fully_shard(block, mp_policy=whole, reshard_after_forward=True)
            # The outermost group too: the teacher has no backward pass after which it would be freed.
            fully_shard(part, mp_policy=whole, reshard_after_forward=True)


def synchronise_gradients(model: StudentTeacher, wanted: bool) -> None:
    """Set if the next backward pass exchanges gradients: only the last micro-batch of a step does."""
    for part in model.student.values():
        part.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict in whole tensors; a collective call where the module is shared out."""
    return {name: _whole(value) for name, value in module.state_dict().items()}


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict in whole tensors; a collective call where its parameters are shared out."""
    state = optimizer.state_dict()
    state["state"] = {
        index: {name: _whole(value) for name, value in values.items()} for index, values in state["state"].items()
    }
    return state


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict of whole tensors into an optimizer over shared-out parameters in the same order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # A moment has its parameter's shape; step counters are single numbers on every rank.
    shares = {
        index: {name: _share(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": shares, "param_groups": state["param_groups"]})


def whole_backbone(module: VisionTransformer) -> VisionTransformer:
    """The backbone itself, or a whole copy of a shared-out one; a collective call then."""
    if not any(map(is_shared, module.parameters())):
        return module
    state = whole_state(module)
    backbone = VisionTransformer(module.config)
    backbone.load_state_dict(state)
    return backbone.to(next(module.parameters()).device).eval()


def _whole(value: Any) -> Any:
    return value.full_tensor() if is_shared(value) else value


def _share(value: Any, parameter: Tensor) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
