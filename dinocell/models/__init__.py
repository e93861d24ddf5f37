"""Backbones (DINOv2-compatible), decoder, and their weights."""

from dinocell.models.attention import choose_backend
from dinocell.models.decoder import DecoderConfig
from dinocell.models.segmenter import SegmentationModel, load_model_folder, save_model
from dinocell.models.vision_transformer import GRAY_MEAN, GRAY_STD, Features, VisionTransformer, ViTConfig

__all__ = [
    "GRAY_MEAN",
    "GRAY_STD",
    "DecoderConfig",
    "Features",
    "SegmentationModel",
    "ViTConfig",
    "VisionTransformer",
    "choose_backend",
    "load_model_folder",
    "save_model",
]
