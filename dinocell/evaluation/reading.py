"""Label images of any tool, and Cellpose's `_seg.npy`, which is a pickle: only arrays and plain values are let in."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.data.io import read_labels
from dinocell.errors import DataError

_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
}


def read_label_image(path: Path) -> NDArray[np.int32]:
    """int32 (H, W) labels of an image file, of an array in .npy, or of the `masks` in Cellpose's `_seg.npy`.

    Raises:
        DataError: unreadable, not one plane of labels, or a pickle that holds more than arrays and plain values.
    """
    if not path.name.lower().endswith("_seg.npy"):
        return read_labels(path)
    content = _unpickle(path)
    masks = content.get("masks") if isinstance(content, dict) else content
    if not isinstance(masks, np.ndarray) or masks.ndim != 2 or masks.dtype.kind not in "biu":
        raise DataError(f"{path}: holds no (H, W) integer array 'masks': export the masks as TIFF or PNG")
    return masks.astype(np.int32)


class _ArraysOnly(pickle.Unpickler):
    """Refuses every name but those that NumPy's own arrays need: a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return super().find_class(module, name)


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = header(file)
            if not dtype.hasobject:
                return read_labels(path)
            array = _ArraysOnly(file).load()
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, TypeError) as error:
        raise DataError(f"{path}: not a Cellpose _seg.npy: {error}") from error
    return array.item() if isinstance(array, np.ndarray) and array.size == 1 else array
