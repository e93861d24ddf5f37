"""Parameter groups follow DINOv2's rules; every trainable parameter is in exactly one group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinocell.training import optim


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, 4, 2)})
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"norm1": nn.LayerNorm(4), "mlp": nn.Linear(4, 4)}) for _ in range(3)]
        )
        self.norm = nn.LayerNorm(4)


def of(groups: list[dict], parameter: nn.Parameter) -> dict:
    found = [g for g in groups if any(p is parameter for p in g["params"])]
    assert len(found) == 1
    return found[0]


def test_layer_decay_patch_multiplier_and_weight_decay() -> None:
    model = Backbone()
    groups = optim.parameter_groups(model, depth=3, layer_decay=0.9, patch_embed_multiplier=0.2)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert of(groups, model.cls_token)["lr_multiplier"] == pytest.approx(0.9**4)
    assert of(groups, model.pos_embed)["wd_multiplier"] == 1.0
    assert of(groups, model.patch_embed["proj"].weight)["lr_multiplier"] == pytest.approx(0.2 * 0.9**4)
    assert of(groups, model.blocks[0]["mlp"].weight)["lr_multiplier"] == pytest.approx(0.9**3)
    assert of(groups, model.blocks[2]["mlp"].weight)["lr_multiplier"] == pytest.approx(0.9)
    assert of(groups, model.blocks[1]["mlp"].bias)["wd_multiplier"] == 0.0
    assert of(groups, model.blocks[1]["norm1"].weight)["wd_multiplier"] == 0.0
    assert of(groups, model.norm.weight)["lr_multiplier"] == 1.0


def test_the_last_layer_is_held_while_the_rest_moves() -> None:
    head = nn.ModuleDict({"mlp": nn.Linear(4, 4), "last_layer": nn.Linear(4, 8, bias=False)})
    optimizer = optim.adamw(optim.parameter_groups(head, depth=0))
    optim.set_schedule(optimizer, lr=1e-3, weight_decay=0.04, last_layer_lr=0.0)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    head["last_layer"](head["mlp"](torch.ones(2, 4))).square().sum().backward()
    optimizer.step()
    after = dict(head.named_parameters())
    assert torch.equal(before["last_layer.weight"], after["last_layer.weight"])
    assert not torch.equal(before["mlp.weight"], after["mlp.weight"])


def test_clipping_reports_the_norm_before() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert optim.clip_gradients(layer, 1.0) == pytest.approx(5.0)
    assert layer.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    assert optim.clip_gradients(nn.Linear(2, 1), 1.0) == 0.0
