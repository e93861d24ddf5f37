"""The segmentation network: a crop in, one raw map per target out; and its folder on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from dinocell.checkpoint import atomic_write_bytes, atomic_write_text
from dinocell.config import from_dict
from dinocell.errors import CheckpointError, ConfigError, DinoCellError
from dinocell.models.decoder import Decoder, DecoderConfig, upsampling_blocks
from dinocell.models.formats import read_safetensors
from dinocell.models.resize import IMAGENET_MEAN, IMAGENET_STD
from dinocell.models.vision_transformer import GRAY_MEAN, GRAY_STD, VisionTransformer, ViTConfig

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class SegmentationModel(nn.Module):
    """Backbone and decoder (paper §3.1.2).

    Args:
        backbone: gray (in_channels 1) or RGB; an RGB backbone gets the gray crop in all three channels.
        decoder: its configuration.
        channels: number of maps K.
        crop_size: side of the crops the model is trained on, px.
        input_size: side a crop is resized to before the backbone, px; a multiple of the backbone's patch.
    """

    rgb_mean: Tensor
    rgb_std: Tensor

    def __init__(
        self, backbone: VisionTransformer, decoder: DecoderConfig, channels: int, crop_size: int, input_size: int
    ) -> None:
        super().__init__()
        patch = backbone.patch_size
        if input_size < patch or input_size % patch:
            below = max(input_size // patch, 1) * patch
            raise ConfigError(f"input_size: {input_size} px; the patch {patch} divides {below} and {below + patch}")
        self.backbone = backbone
        self.decoder_config = decoder
        self.channels = channels
        self.crop_size = crop_size
        self.input_size = input_size
        blocks = upsampling_blocks(crop_size, input_size // patch)
        # channels last: the decoder's convolutions take half the time on a CPU
        self.decoder = Decoder(decoder, backbone.embed_dim, channels, blocks)
        self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("rgb_mean", mean.reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("rgb_std", std.reshape(1, 3, 1, 1), persistent=False)

    def forward(self, z: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Raw maps of preprocessed crops.

        Args:
            z: [B, 1, H, W] of zero mean and unit variance over the whole image; usually H = W = crop_size. Other
                sizes are resized by the same factor.
            tokens: what `encode(z)` gives, where it is known already (a frozen backbone's cached tokens).

        Returns:
            [B, K, H, W], without activation.

        Raises:
            ValueError: the resized crop is not a multiple of the patch.
        """
        if tokens is None:
            tokens = self.encode(z)
        rows, columns = (side // self.backbone.patch_size for side in self._input_shape(z))
        features = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # [B, D, rows, columns]
        maps: Tensor = self.decoder(features, z)
        return maps

    def encode(self, z: Tensor) -> Tensor:
        """The backbone's normed patch tokens [B, N, D] of crops [B, 1, H, W] as for `forward`."""
        tokens: Tensor = self.backbone.forward_features(self._backbone_input(z))["x_norm_patchtokens"]
        return tokens

    def _input_shape(self, z: Tensor) -> tuple[int, int]:
        """Height and width of crops at the backbone's resolution."""
        # Rounding in integers, so that the model can be traced.
        height, width = ((side * self.input_size + self.crop_size // 2) // self.crop_size for side in z.shape[-2:])
        return height, width

    def _backbone_input(self, z: Tensor) -> Tensor:
        """Crops at the backbone's resolution and in its value range: [B, C, ·, ·]."""
        height, width = self._input_shape(z)
        if (height, width) != tuple(z.shape[-2:]):
            shrinks = self.input_size < self.crop_size
            z = F.interpolate(z, size=(height, width), mode="bicubic", align_corners=False, antialias=shrinks)
        gray = z * GRAY_STD + GRAY_MEAN
        if self.backbone.in_channels == 1:
            return gray
        return (gray - self.rgb_mean) / self.rgb_std


def save_model(directory: str | Path, model: SegmentationModel, meta: Mapping[str, Any], *, half: bool = False) -> Path:
    """Write `model.safetensors` and `config.json`, all that inference needs, into `directory` (made if absent).

    Args:
        meta: what else inference needs to know (preprocess, objective, training…), as plain JSON values.
        half: store matrices and filters in float16 (see `halved`); they are float32 again when they are loaded.

    Returns:
        The directory.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()}
    if half:
        state = halved(state, str(directory / WEIGHTS_NAME))
    config = {
        **meta,
        "backbone": dataclasses.asdict(model.backbone.config),
        "decoder": dataclasses.asdict(model.decoder_config),
        "channels": model.channels,
        "crop_size": model.crop_size,
        "input_size": model.input_size,
    }
    atomic_write_bytes(directory / WEIGHTS_NAME, save(state))
    atomic_write_text(directory / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return directory


def halved(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of two and more dimensions in float16; scales and biases, next to nothing in size, stay float32.

    A LayerScale of 1e-5 would keep only two digits in float16.

    Raises:
        CheckpointError: a value does not fit float16; `where` names the file.
    """
    limit = torch.finfo(torch.float16).max
    for name, value in state.items():
        if value.ndim > 1 and not bool((value.abs() <= limit).all()):
            raise CheckpointError(f"{where}: {name} holds values beyond ±{limit:g} or NaN; keep this model in float32")
    return {name: value.to(torch.float16) if value.ndim > 1 else value for name, value in state.items()}


def halve_model_folder(source: str | Path, target: str | Path) -> Path:
    """Write a model folder again with half the weights' size (see `halved`); config.json and cards are copied as is.

    Args:
        source: a model folder; it is not touched.
        target: another folder, made if absent.

    Returns:
        The target.

    Raises:
        ConfigError: the folders are the same, or `source` lacks a file.
        CheckpointError: damaged weights, or a value does not fit float16.
    """
    source, target = Path(source), Path(target)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the model itself; float16 cannot be undone, so name another folder")
    load_model_folder(source)  # what does not load is not passed on
    state, _ = read_safetensors(source / WEIGHTS_NAME)
    small = save(halved(state, str(source / WEIGHTS_NAME)))
    target.mkdir(parents=True, exist_ok=True)
    for card in sorted(source.glob("*.md")):
        atomic_write_bytes(target / card.name, card.read_bytes())
    atomic_write_bytes(target / WEIGHTS_NAME, small)
    atomic_write_bytes(target / CONFIG_NAME, (source / CONFIG_NAME).read_bytes())
    return target


def load_model_folder(
    directory: str | Path, device: str | torch.device = "cpu"
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Read what `save_model` wrote: the model in evaluation mode, float32, on `device`, and config.json's content.

    Raises:
        ConfigError: the folder or a file in it is missing.
        CheckpointError: a file is damaged, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory / name}: no such file; a model folder holds {WEIGHTS_NAME}, {CONFIG_NAME}")
    try:
        meta: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        with torch.device("meta"):  # no time for random values that are replaced
            backbone = VisionTransformer(from_dict(ViTConfig, meta["backbone"]))
        decoder = from_dict(DecoderConfig, meta["decoder"])
        model = SegmentationModel(backbone, decoder, meta["channels"], meta["crop_size"], meta["input_size"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, DinoCellError) as error:
        raise CheckpointError(f"{directory / CONFIG_NAME}: not a model configuration ({error})") from error
    state, _ = read_safetensors(directory / WEIGHTS_NAME)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{directory / WEIGHTS_NAME}: does not fit its {CONFIG_NAME}: {reason}") from error
    return model.to(device).eval(), meta
