"""The segmentation network: a crop in, one raw map per target out; and its folder on disk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinocell.core.errors import ConfigError
from dinocell.models.decoder import Decoder, DecoderConfig, upsampling_blocks
from dinocell.models.vit.vision_transformer import GRAY_MEAN, GRAY_STD, VisionTransformer
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD


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
