"""Cellpose's _seg.npy: a pickled dictionary, of which only arrays and plain values are let in."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from dinocell.errors import DataError

ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Unpickler(pickle.Unpickler):
    """Refuses everything but NumPy arrays: a pickle from the internet may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DataError(
                f"_seg.npy holds a {module}.{name}, which is not loaded; export masks from Cellpose as TIFF"
            )
        return super().find_class(module, name)


def read_seg_masks(file: Path) -> npt.NDArray[np.int32]:
    """The label image (H, W) in a Cellpose _seg.npy.

    Raises:
        DataError: not such a file, or one that holds anything but arrays.
    """
    data = file.read_bytes()
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        reader(stream)
        content = _Unpickler(stream).load()
        masks = content.item()["masks"] if isinstance(content, np.ndarray) else content["masks"]
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{file}: not a Cellpose _seg.npy: {error}") from error
    labels = np.squeeze(np.asarray(masks))
    if labels.ndim != 2:
        raise DataError(f"{file}: masks of shape {labels.shape}, not (H, W)")
    return labels.astype(np.int32)
