"""Label images of any tool, and Cellpose's `_seg.npy`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinocell.datasets.prepare.cellpose import read_seg_masks
from dinocell.labels.files import read_labels


def read_label_image(path: Path) -> NDArray[np.int32]:
    """int32 (H, W) labels of an image file, of an array in .npy, or of the `masks` in Cellpose's `_seg.npy`.

    Raises:
        DataError: unreadable, not one plane of labels, or a pickle that contains more than arrays and plain values.
    """
    return read_seg_masks(path) if path.name.lower().endswith("_seg.npy") else read_labels(path)
