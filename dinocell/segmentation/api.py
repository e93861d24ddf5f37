"""The one-line interface: find a model by folder or name, and segment an image."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from dinocell.core.device import Precision
from dinocell.images.depth import choose_depth
from dinocell.images.planes import Image, count_planes, open_image
from dinocell.models.packaged import find_model
from dinocell.segmentation.options import SegmentKwargs, SegmentOptions
from dinocell.segmentation.segmenter import Segmenter


def load_model(
    path_or_name: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    precision: Precision = "auto",
    batch_size: int | None = None,
    overlap: int | None = None,
    views: int | None = None,
) -> Segmenter:
    """Load a `Segmenter` from a model folder, a fine-tuning run, or the name of a packaged model.

    Args:
        path_or_name: the folder or name; None takes the packaged default, `cells`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: see `Segmenter`, as the following.
        batch_size: windows per forward.
        overlap: fewest pixels that two windows share.
        views: turned and mirrored views of each window whose maps are averaged.

    Raises:
        ConfigError: there is no such model; CheckpointError: it is damaged.
    """
    folder = find_model(path_or_name)
    return Segmenter(folder, device=device, precision=precision, batch_size=batch_size, overlap=overlap, views=views)


@lru_cache(maxsize=1)
def _cached_model(folder: Path, changed: int, device: str) -> Segmenter:
    return Segmenter(folder, device=device)


def segment(
    image: Image,
    model: str | os.PathLike[str] | Segmenter | None = None,
    *,
    device: str = "auto",
    **options: Unpack[SegmentKwargs],
) -> NDArray[Any]:
    """Segment an image in one line; the model is loaded once and kept.

    Args:
        image: a path, or an array: (H, W), (H, W, 3 or 4) colour, (C, H, W) channels, or a stack.
        model: a model folder, a packaged name, or a `Segmenter`; default: the packaged model.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        **options: fields of `SegmentOptions`, e.g. `axes="TYX"`, `channel=0`, `diameter=30`.

    Returns:
        (H, W) uint16 (uint32 past 65,535 cells), 0 = background; (planes, H, W) for stacks, each plane on its own.
    """
    if not isinstance(model, Segmenter):
        folder = find_model(model)
        weights = folder / "model.safetensors"
        model = _cached_model(folder, weights.stat().st_mtime_ns if weights.is_file() else 0, device)
    chosen = SegmentOptions.parse(options)
    opened = choose_depth(open_image(image, chosen.axes), chosen.z, chosen.channel)
    results = [result.labels for result in model.segment_planes(opened, chosen)]
    stacked = count_planes(opened) > 1 or bool({"T", "Z"} & set(opened.axes))
    return np.stack(results) if stacked else results[0]
