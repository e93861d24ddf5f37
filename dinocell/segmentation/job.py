"""A plane on its way from the file to its cells."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.images.planes import InputPlane
from dinocell.predict.placement import Placement
from dinocell.segmentation.notes import Note

Float32 = NDArray[np.float32]


@dataclasses.dataclass(kw_only=True)
class Job:
    """A preprocessed plane and its placement.

    z is the network's input, None where there is nothing to predict; `tag` is the caller's.
    """

    plane: InputPlane
    placement: Placement
    z: Float32 | None
    invalid: NDArray[np.bool_] | None
    notes: list[Note]
    kept: Float32 | None = None
    tag: Any = None
