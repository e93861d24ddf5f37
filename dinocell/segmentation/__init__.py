"""Segmentation: images in, cells out."""

from dinocell.segmentation.api import load_model, segment
from dinocell.segmentation.folder import image_files, run
from dinocell.segmentation.options import SegmentOptions
from dinocell.segmentation.result import SegmentationResult
from dinocell.segmentation.segmenter import Segmenter
from dinocell.segmentation.shards import Shard, merge_shards
from dinocell.segmentation.summary import RunSummary

__all__ = [
    "RunSummary",
    "SegmentOptions",
    "SegmentationResult",
    "Segmenter",
    "Shard",
    "image_files",
    "load_model",
    "merge_shards",
    "run",
    "segment",
]
