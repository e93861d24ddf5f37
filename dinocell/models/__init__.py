"""Backbones (DINOv2-compatible), decoder, and their weights."""

from dinocell.models.decoder import DecoderConfig
from dinocell.models.folder import ModelCard, halve_model_folder, load_model_folder, save_model
from dinocell.models.network import SegmentationModel
from dinocell.models.vit.attention import choose_backend
from dinocell.models.vit.flops import forward_flops
from dinocell.models.vit.vision_transformer import GRAY_MEAN, GRAY_STD, Features, VisionTransformer, ViTConfig
from dinocell.models.weights.export import export_backbone
from dinocell.models.weights.load import LoadReport, load_backbone, save_backbone

__all__ = [
    "GRAY_MEAN",
    "GRAY_STD",
    "DecoderConfig",
    "Features",
    "LoadReport",
    "ModelCard",
    "SegmentationModel",
    "ViTConfig",
    "VisionTransformer",
    "choose_backend",
    "export_backbone",
    "forward_flops",
    "halve_model_folder",
    "load_backbone",
    "load_model_folder",
    "save_backbone",
    "save_model",
]
