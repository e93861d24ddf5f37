"""Curation: from any pile of microscopy to crops worth training on (paper §3.1.1)."""

from dinocell.curation.best_window import best_crop, best_crops
from dinocell.curation.config import CurateConfig, FilterConfig
from dinocell.curation.curate import merge, run, shards

__all__ = ["CurateConfig", "FilterConfig", "best_crop", "best_crops", "merge", "run", "shards"]
