"""Segmenting images of any size with a trained model."""

from dinocell.inference.api import load_model, packaged_models, segment
from dinocell.inference.folder import RunSummary, run
from dinocell.inference.result import SegmentationResult
from dinocell.inference.segment import Segmenter, SegmentOptions
from dinocell.inference.tiling import predict_maps

__all__ = [
    "RunSummary",
    "SegmentOptions",
    "SegmentationResult",
    "Segmenter",
    "load_model",
    "packaged_models",
    "predict_maps",
    "run",
    "segment",
]
