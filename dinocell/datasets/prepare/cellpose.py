"""Cellpose's _seg.npy: a pickled dictionary, of which only arrays and plain values are let in."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from dinocell.core.errors import DataError
from dinocell.images.image import reading
from dinocell.labels.files import read_labels


class _Array:
    """Stands for numpy.ndarray, which a pickle could otherwise call with any size it chooses."""


def _reconstruct(*_: Any) -> npt.NDArray[Any]:
    """The empty array that NumPy's pickles ask for before they set its content."""
    return np.empty(0, np.int8)


def _encode(text: str, _: str = "latin1") -> bytes:
    """Bytes of pickles before protocol 3."""
    return text.encode("latin1")


_OWN = {"ndarray": _Array, "_reconstruct": _reconstruct, "encode": _encode}
ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"{core}.{module}", name)
    for core in ("numpy._core", "numpy.core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class _Unpickler(pickle.Unpickler):
    """Refuses everything but NumPy arrays: a pickle from the internet may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DataError(f"it names {module}.{name!r}, which is not loaded; export masks from Cellpose as TIFF")
        return _OWN.get(name) or super().find_class(module, name)


def read_seg_masks(file: Path) -> npt.NDArray[np.int32]:
    """The label image (H, W) in a Cellpose _seg.npy, or in an array saved under such a name.

    Raises:
        DataError: not such a file, or one that contains anything but arrays and plain values.
    """
    with reading(file, "not a Cellpose _seg.npy"):
        with file.open("rb") as stream:
            version = npy.read_magic(stream)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            if not header(stream)[2].hasobject:
                return read_labels(file)
            content = _Unpickler(stream).load()
        content = content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
        labels = np.squeeze(np.asarray(content.get("masks") if isinstance(content, Mapping) else content))
        if labels.ndim != 2 or labels.dtype.kind not in "biu":
            raise DataError("contains no (H, W) integer array 'masks': export the masks as TIFF or PNG")
        return labels.astype(np.int32)
