"""Floating-point operations of a forward pass, attention included, for MFU figures and summaries."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, inputs: Tensor | Sequence[Tensor]) -> float:
    """Operations (2 a multiply-add) of the matrix products and convolutions of one forward pass in evaluation mode.

    Nothing is computed: the pass runs on shapes alone (the meta device), so that a ViT-B at 896 px is counted in a
    second. fvcore, which has to run the model, gives the same number (tested).

    Args:
        model: a backbone or a segmentation model.
        inputs: what its forward takes: a batch, or for a backbone a list of crop batches; values do not matter.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    batches = inputs.to("meta") if isinstance(inputs, Tensor) else [batch.to("meta") for batch in inputs]
    # The math kernel is plain matrix products, which the counter knows on every device.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        shapes(batches)
    return float(counter.get_total_flops())
