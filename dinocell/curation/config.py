"""Settings of curation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinocell.core.fields import SettingError, Settings, field
from dinocell.images.gray.contrast import HIGH_PERCENTILE, LOW_PERCENTILE


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Settings):
    """Limits beyond which a file, plane or crop is rejected; 0 (or 1 for shares) switches a limit off."""

    min_side: int = field(64, "planes with a shorter side are too small; at least 16", "px", at_least=0)
    min_levels: int = field(
        8, "fewer distinct values are a mask or a drawing, not a micrograph", at_least=0, advanced=True
    )
    max_single_value: float = field(
        0.98, "largest share of a plane's pixels that may have one value", at_least=0, at_most=1, advanced=True
    )
    max_saturated: float = field(
        0.5,
        "largest share of a plane's pixels at the brightest value of their dtype",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    min_focus: float = field(
        0.8, "Laplacian variance at half size after a 1 px Gaussian; below is blurred", "gray²", at_least=0
    )
    min_structure: float = field(
        2.5, "variance between 16 px blocks ÷ that of pure noise; below is empty", at_least=0, advanced=True
    )
    min_occupied: float = field(
        0.005,
        "smallest share of 16 px blocks with more contrast than the noise",
        at_least=0,
        at_most=1,
        advanced=True,
    )
    duplicates: bool = field(True, "reject files and crops that repeat an earlier one")
    max_hash_distance: int = field(
        5,
        "perceptual hashes differing in more of their 64 bits are different images",
        at_least=0,
        at_most=5,
        advanced=True,
    )
    min_correlation: float = field(
        0.98,
        "smallest correlation of 32×32 thumbnails of perceptual duplicates",
        at_least=0,
        at_most=1,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class CurateConfig(Settings):
    """From any pile of microscopy to gray 8-bit crops and a manifest of every decision (paper §3.1.1)."""

    sources: tuple[str, ...] = field(doc="image files, folders (recursively) or glob patterns")
    out: str = field(doc="folder for crops/, manifest.csv, rejected.csv and contact_sheet.html")
    size: int = field(1024, "side of a crop; smaller images are kept whole", "px", at_least=1)
    crops_per_image: int = field(1, "crops of each gray plane, best first", at_least=1)
    max_overlap: float = field(
        0.25,
        "largest share of its area a further crop may share with a better one",
        at_least=0,
        below=1,
        advanced=True,
    )
    axes: str | None = field(None, "letters out of TZCYXS that override what files say, e.g. ZYX; null reads metadata")
    z: Literal["focus", "max", "mean"] = field("focus", "a Z stack becomes its best focused plane, maximum or mean")
    t_step: int = field(1, "take every n-th time point", at_least=1)
    colour: Literal["auto", "luma", "channels"] = field(
        "auto", "colour images: luma, separate channels, or luma when bright (stains) and channels when dark (dyes)"
    )
    combined: bool = field(True, "also make one image of all channels", advanced=True)
    percentile_low: float = field(
        LOW_PERCENTILE, "percentile of a plane that becomes 0", "%", at_least=0, at_most=100, advanced=True
    )
    percentile_high: float = field(
        HIGH_PERCENTILE, "percentile of a plane that becomes 255", "%", at_least=0, at_most=100, advanced=True
    )
    dataset: str = field("", "dataset column; empty takes the folder below the source")
    modality: str = field("", "modality column; empty guesses fluorescence (mostly dark) or transmitted")
    max_gib: float = field(8.0, "files that decode to more are refused unread", "GiB", above=0, resume="neutral")
    workers: int = field(0, "processes; 0 takes every core; results do not depend on it", at_least=0, resume="neutral")
    shard_index: int = field(0, "part of the files that this job of an array takes, from 0", at_least=0, advanced=True)
    shard_count: int = field(1, "parts in the array; a last run with merge=true joins them", at_least=1, advanced=True)
    merge: bool = field(
        False, "read no images: join what shards have done, and refuse while one of them is unfinished", advanced=True
    )
    sheet_limit: int = field(
        2000, "crops on one contact sheet; above, each dataset gets its own page", at_least=1, advanced=True
    )
    filters: FilterConfig = field(factory=FilterConfig, doc="what is rejected")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_index >= self.shard_count:
            raise SettingError("shard_index", f"must be below shard_count={self.shard_count}, got {self.shard_index}")
        if self.merge and self.shard_count > 1:
            raise SettingError("merge", f"joins all shards at once; leave out shard_count={self.shard_count}")
        self.check_order("percentile_low", "percentile_high")
        if self.axes is not None and (
            set(self.axes.upper()) - set("TZCYXS") or not {"Y", "X"} <= set(self.axes.upper())
        ):
            raise SettingError("axes", f"must be letters out of TZCYXS with Y and X, got {self.axes!r}")
