"""Backbones (DINOv2-compatible), decoder, and their weights."""

from dinocell.models.attention import choose_backend
from dinocell.models.decoder import DecoderConfig
from dinocell.models.export import export_backbone
from dinocell.models.flops import flops
from dinocell.models.segmenter import SegmentationModel, halve_model_folder, load_model_folder, save_model
from dinocell.models.vision_transformer import GRAY_MEAN, GRAY_STD, Features, VisionTransformer, ViTConfig
from dinocell.models.weights import LoadReport, load_backbone, save_backbone

__all__ = [
    "GRAY_MEAN",
    "GRAY_STD",
    "DecoderConfig",
    "Features",
    "LoadReport",
    "SegmentationModel",
    "ViTConfig",
    "VisionTransformer",
    "choose_backend",
    "export_backbone",
    "flops",
    "halve_model_folder",
    "load_backbone",
    "load_model_folder",
    "save_backbone",
    "save_model",
]
