"""A plane on its way from the file to its cells."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.images.planes import InputPlane
from dinocell.segmentation.notes import Note

Float32 = NDArray[np.float32]


@dataclasses.dataclass(kw_only=True)
class Job:
    """A preprocessed plane: z (h, w) at the model's scale, None where there is nothing to predict; the caller's tag.

    `scale` is what the user or the estimate asked for, without the enlarging of small images to a window. `shown` is
    the size of the upper left part of z that shows the picture: the rest is mirrored.
    """

    plane: InputPlane
    size: tuple[int, int]
    z: Float32 | None
    invalid: NDArray[np.bool_] | None
    notes: list[Note]
    kept: Float32 | None = None
    scale: float = 1.0
    shown: tuple[int, int] = (0, 0)
    tag: Any = None
