"""Settings of curation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinocell.core.config import field
from dinocell.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Limits beyond which a file, plane or crop is rejected; 0 (or 1 for shares) switches a limit off."""

    min_side: int = field(64, "planes with a shorter side are too small; at least 16", "px")
    min_levels: int = field(8, "fewer distinct values are a mask or a drawing, not a micrograph")
    max_single_value: float = field(0.98, "largest share of a plane's pixels that may have one value")
    max_saturated: float = field(0.5, "largest share of a plane's pixels at the brightest value of their dtype")
    min_focus: float = field(0.8, "Laplacian variance at half size after a 1 px Gaussian; below is blurred", "gray²")
    min_structure: float = field(2.5, "variance between 16 px blocks ÷ that of pure noise; below is empty")
    min_occupied: float = field(0.005, "smallest share of 16 px blocks with more contrast than the noise")
    duplicates: bool = field(True, "reject files and crops that repeat an earlier one")
    max_hash_distance: int = field(5, "perceptual hashes differing in more of their 64 bits are different images")
    min_correlation: float = field(0.98, "smallest correlation of 32×32 thumbnails of perceptual duplicates")

    def __post_init__(self) -> None:
        for name in ("max_single_value", "max_saturated", "min_occupied", "min_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"filters.{name}: a share between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.max_hash_distance <= 5:
            raise ConfigError(f"filters.max_hash_distance: 0 to 5 of 64 bits, got {self.max_hash_distance}")


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """From any pile of microscopy to gray 8-bit crops and a manifest of every decision (paper §3.1.1)."""

    sources: tuple[str, ...] = field(doc="image files, folders (recursively) or glob patterns")
    out: str = field(doc="folder for crops/, manifest.csv, rejected.csv and contact_sheet.html")
    size: int = field(1024, "side of a crop; smaller images are kept whole", "px")
    crops_per_image: int = field(1, "crops of each gray plane, best first")
    max_overlap: float = field(0.25, "largest share of its area a further crop may share with a better one")
    axes: str | None = field(None, "letters out of TZCYXS that override what files say, e.g. ZYX; null reads metadata")
    z: Literal["focus", "max", "mean"] = field("focus", "a Z stack becomes its best focused plane, maximum or mean")
    t_step: int = field(1, "take every n-th time point")
    colour: Literal["auto", "luma", "channels"] = field(
        "auto", "colour images: luma, separate channels, or luma when bright (stains) and channels when dark (dyes)"
    )
    combined: bool = field(True, "also make one image of all channels")
    percentile_low: float = field(0.1, "percentile of a plane that becomes 0", "%")
    percentile_high: float = field(99.9, "percentile of a plane that becomes 255", "%")
    dataset: str = field("", "dataset column; empty takes the folder below the source")
    modality: str = field("", "modality column; empty guesses fluorescence (mostly dark) or transmitted")
    max_gib: float = field(8.0, "files that decode to more are refused unread", "GiB")
    workers: int = field(0, "processes; 0 takes every core; results do not depend on it")
    shard_index: int = field(0, "which part of the files this job of an array takes, from 0")
    shard_count: int = field(1, "parts in the array; a last run with merge=true joins them")
    merge: bool = field(False, "read no images: join what shards have done, and refuse while one of them is unfinished")
    sheet_limit: int = field(2000, "crops on one contact sheet; above, each dataset gets its own page")
    filters: FilterConfig = field(factory=FilterConfig, doc="what is rejected")

    def __post_init__(self) -> None:
        for name in ("size", "crops_per_image", "t_step", "shard_count", "sheet_limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ConfigError(f"workers: 0 for every core or a number above, got {self.workers}")
        if not 0 <= self.max_overlap < 1:
            raise ConfigError(f"max_overlap: a share from 0 to below 1, got {self.max_overlap}")
        if not 0 <= self.shard_index < self.shard_count:
            raise ConfigError(
                f"shard_index: from 0 to shard_count − 1 = {self.shard_count - 1}, got {self.shard_index}"
            )
        if self.merge and self.shard_count > 1:
            raise ConfigError(f"merge: joins all shards at once; leave out shard_count={self.shard_count}")
        if not 0 <= self.percentile_low < self.percentile_high <= 100:
            raise ConfigError(f"percentile_low: needs 0 ≤ low < high ≤ 100, got {self.percentile_low}")
        if self.axes is not None and (
            set(self.axes.upper()) - set("TZCYXS") or not {"Y", "X"} <= set(self.axes.upper())
        ):
            raise ConfigError(f"axes: letters out of TZCYXS with Y and X, got {self.axes!r}")
