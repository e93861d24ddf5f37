"""What a user can choose when segmenting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from dinocell.core.config import field
from dinocell.core.errors import ConfigError
from dinocell.images.depth import Depth, check_depth
from dinocell.images.planes import Channel
from dinocell.objectives import ObjectiveConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How images are read and how maps become cells; None leaves what the file or the model says."""

    axes: str | None = field(None, "axes of the array, letters out of TZCYXS, when the file does not say or errs")
    channel: Channel | None = field(None, "channel to segment, index from 0 or name; default: all, combined to gray")
    z: Depth | None = field(None, "Z stacks as one plane: best, max, mean or a number from 0; default: each depth")
    diameter: float | Literal["auto", "own"] | None = field(
        None,
        "typical cell diameter in the image; rescales to the model's own; auto estimates it, own keeps the image's "
        "scale; default: as the model says (auto for those trained on rescaled images)",
        "px",
    )
    pixel_size: float | None = field(None, "pixel size of the image; overrides the file's", "µm")
    threshold: float | None = field(None, "probability above which a pixel belongs to a cell")
    min_size: int | None = field(None, "smallest cell kept; default: the model's, at the scale it sees", "px")
    max_size_fraction: float | None = field(None, "largest cell kept, as part of the image")
    embeddings: bool = field(False, "also the mean patch token of each cell; the backbone runs once more")
    flow_error: float | None = field(None, "largest mean squared flow error of a cell; 0 = no check")

    def __post_init__(self) -> None:
        for name in ("diameter", "pixel_size"):
            value = getattr(self, name)
            words = ("auto", "own") if name == "diameter" else ()
            if isinstance(value, str) and value not in words:
                raise ConfigError(f"{name}: must be a number{', auto or own' if words else ''}, got {value!r}")
            if isinstance(value, (int, float)) and not 0 < value < math.inf:
                raise ConfigError(f"{name}: must be above 0, got {value}")
        check_depth(self.z)

    def decoding(self, objective: ObjectiveConfig, scale: float = 1.0) -> ObjectiveConfig:
        """The model's objective with the thresholds that the user changed, for an image that it sees at `scale`."""
        names = ("threshold", "min_size", "max_size_fraction", "flow_error")
        changed = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(objective.seen_at(scale), **changed)


def merge_options(options: SegmentOptions | None, changes: Mapping[str, Any]) -> SegmentOptions:
    known = {entry.name for entry in dataclasses.fields(SegmentOptions)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such option of segment; known: {', '.join(sorted(known))}")
    return dataclasses.replace(options or SegmentOptions(), **changes)
