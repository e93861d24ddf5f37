"""Label images as OME-Zarr, with a pyramid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.files import AtomicFolder
from dinocell.images.mapped import release

CHUNK = 1024
SMALLEST_LEVEL = 512
"""The pyramid ends with the first level of at most this length and width."""


def write_label_zarr(path: Path, labels: NDArray[Any], pixel_size: float | None) -> None:
    """Write labels (H, W) as OME-Zarr 0.4 by rows of chunks, whole or not at all; requires zarr.

    Args:
        path: a folder, replaced if present.
        labels: any integer dtype, kept; memory-mapped labels are never in memory as a whole.
        pixel_size: µm per pixel, None = not known.
    """
    import zarr  # optional: the extra `formats`
    from numcodecs import Blosc

    with AtomicFolder(path) as temporary:
        group = zarr.open_group(str(temporary), mode="w", zarr_format=2)
        levels: list[Any] = []
        source: Any = labels
        while not levels or max(source.shape) > SMALLEST_LEVEL:
            step = 2 if levels else 1
            shape = tuple(-(-length // step) for length in source.shape)
            level = group.create_array(
                str(len(levels)),
                shape=shape,
                dtype=labels.dtype,
                chunks=(min(CHUNK, shape[0]), min(CHUNK, shape[1])),
                compressors=Blosc(cname="zstd", clevel=3),
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
            for top in range(0, shape[0], CHUNK):
                level[top : top + CHUNK] = np.asarray(source[step * top : step * (top + CHUNK)])[::step, ::step]
                release(labels)
            levels.append(level)
            source = level
        group.attrs.update(_metadata(path, len(levels), pixel_size))


def _metadata(path: Path, levels: int, pixel_size: float | None) -> dict[str, Any]:
    unit = {"unit": "micrometer"} if pixel_size else {}
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [(pixel_size or 1.0) * 2**level] * 2}],
        }
        for level in range(levels)
    ]
    axes = [{"name": name, "type": "space", **unit} for name in "yx"]
    scales = {"version": "0.4", "name": path.name.split(".")[0], "axes": axes, "datasets": datasets}
    return {"multiscales": [scales], "image-label": {"version": "0.4"}}
