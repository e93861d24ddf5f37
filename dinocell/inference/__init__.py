"""Segmenting images of any size with a trained model."""

from dinocell.inference.api import load_model, segment
from dinocell.inference.folder import RunSummary, image_files, run
from dinocell.inference.options import SegmentOptions
from dinocell.inference.packaged import find_model, packaged_models
from dinocell.inference.result import SegmentationResult
from dinocell.inference.segment import Segmenter
from dinocell.inference.shards import Shard, merge_shards
from dinocell.inference.tiling import predict_maps

__all__ = [
    "RunSummary",
    "SegmentOptions",
    "SegmentationResult",
    "Segmenter",
    "Shard",
    "find_model",
    "image_files",
    "load_model",
    "merge_shards",
    "packaged_models",
    "predict_maps",
    "run",
    "segment",
]
