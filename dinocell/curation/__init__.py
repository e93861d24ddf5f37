"""Curation: from any pile of microscopy to crops worth training on (paper §3.1.1)."""

from dinocell.curation.cli import main, parse
from dinocell.curation.config import CurateConfig, FilterConfig
from dinocell.curation.focus import best_crop, best_crops
from dinocell.curation.run import merge, run, shards

__all__ = ["CurateConfig", "FilterConfig", "best_crop", "best_crops", "main", "merge", "parse", "run", "shards"]
