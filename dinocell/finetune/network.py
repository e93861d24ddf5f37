"""The network of a fine-tuning run: where its weights come from, which of them are trained, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinocell.core import log
from dinocell.finetune.config import BackboneConfig, FinetuneConfig
from dinocell.finetune.from_model import StartModel, fill_decoder, start_backbone
from dinocell.models import SegmentationModel, VisionTransformer, ViTConfig
from dinocell.models.weights.load import load_backbone
from dinocell.training.optim import parameter_groups


def build_model(config: FinetuneConfig, channels: int, start: StartModel | None = None) -> SegmentationModel:
    """Build the network with the recipe's starting weights; equal seeds give equal random weights.

    Args:
        start: the model in `config.start`; without it a network of its shape has random weights.

    Raises:
        ConfigError, CheckpointError: the backbone's weights are missing, damaged, or of another kind.
    """
    torch.manual_seed(config.seed)
    settings = config.backbone
    if settings.weights:
        backbone = load_backbone(
            settings.weights,
            patch_size=settings.patch_size,
            in_channels=settings.in_channels,
            image_size=config.network_size,
            patch_resize=settings.patch_resize,
            drop_path=settings.drop_path,
        )
    elif start is not None:
        backbone = start_backbone(start, settings.drop_path)
    else:
        log.info(f"backbone: {settings.arch}/{settings.patch_size} from random weights (backbone.weights is empty)")
        backbone = VisionTransformer(
            ViTConfig(
                arch=settings.arch,
                depth=settings.depth,
                patch_size=settings.patch_size,
                image_size=config.network_size,
                in_channels=settings.in_channels,
                drop_path=settings.drop_path,
                layerscale_init=settings.layerscale_init,
            )
        )
    # Mask tokens belong to stage 1; a parameter without a gradient would also stall distributed training.
    backbone.mask_token.requires_grad_(False)
    torch.manual_seed(config.seed + 1)  # the decoder starts alike from any backbone
    model = SegmentationModel(backbone, config.decoder, channels, config.crop_size, config.network_size)
    initialize_decoder(model.decoder)
    if start is not None:
        fill_decoder(model, start)
    return model


def initialize_decoder(decoder: nn.Module) -> None:
    """Random weights that keep the size of the signal through the decoder's ReLU layers (He et al. 2015).

    PyTorch's own start shrinks it by √6 a layer: after seven layers the maps are constant, and the first hundreds of
    steps go into scaling them up (measured: loss 0.47 against 0.22 after 60 steps on nuclei). The last layer starts
    small and without offset.
    """
    for layer in decoder.modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        taps: float = layer.weight.shape[2] * layer.weight.shape[3]
        if isinstance(layer, nn.ConvTranspose2d):  # with stride s, an output pixel sees a 1/s² of the taps
            taps = taps / (layer.stride[0] * layer.stride[1])
        fan_in = layer.in_channels * taps
        nn.init.normal_(layer.weight, std=0.3 / fan_in**0.5 if layer.out_channels == 1 else (2.0 / fan_in) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    detail = getattr(decoder, "detail", None)
    if detail is not None:  # the branch starts silent and is added where it helps
        for layer in detail.merges():
            nn.init.zeros_(layer.weight)


def optimizer_groups(model: SegmentationModel, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameter groups of backbone and decoder with their learning-rate multipliers."""
    backbone = parameter_groups(
        model.backbone,
        depth=model.backbone.depth,
        layer_decay=config.backbone.layer_decay,
        patch_embed_multiplier=1.0,
        name="backbone",
    )
    decoder = parameter_groups(model.decoder, depth=0, name="decoder")
    for group in decoder:
        group["lr_multiplier"] *= config.train.decoder_lr_multiplier
    return backbone + decoder


def freeze_forever(backbone: VisionTransformer, settings: BackboneConfig) -> None:
    """Switch off the gradients of what the recipe never trains."""
    match settings.train:
        case "frozen":
            backbone.requires_grad_(False)
        case "last_k":
            backbone.requires_grad_(False)
            for block in list(backbone.blocks)[-settings.last_k :]:
                block.requires_grad_(True)
            backbone.norm.requires_grad_(True)
        case "all" | "unfreeze_after":
            pass


class Thaw:
    """Holds the backbone's gradients off until `unfreeze_after` of the training is over (train=unfreeze_after)."""

    def __init__(self, backbone: VisionTransformer, settings: BackboneConfig) -> None:
        self._waiting = [p for p in backbone.parameters() if p.requires_grad]
        self._at = settings.unfreeze_after if settings.train == "unfreeze_after" else 0.0
        self.frozen = False

    def update(self, progress: float) -> bool:
        """Freeze or thaw for this share of the training (0 to 1); True when something changed."""
        frozen = progress < self._at
        if frozen == self.frozen:
            return False
        for parameter in self._waiting:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        self.frozen = frozen
        return True


class AveragedWeights:
    """Exponential moving average of a model's weights, started at its first update.

    The decay grows from 0.1 to its final value, min(decay, (1 + n) / (10 + n)) at update n, so that short trainings do
    not average their random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        rate = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        present = model.state_dict()
        floats = [name for name, value in self.shadow.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floats], [present[n] for n in floats], rate)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of a `with` block."""
        own: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers for a checkpoint."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.updates = int(state["updates"])
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
