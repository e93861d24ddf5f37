"""The typical diameter of the cells in an image, estimated with the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.inference.resample import Picture

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was found: `scale` to the model's pixels, the cells' diameter (px of the image; None: not sure)."""

    scale: float
    diameter: float | None
    cells: int

    def __str__(self) -> str:
        if self.diameter is None:
            return "diameter auto: not sure, taken at its own scale; give the diameter if the cells come out wrong"
        return f"diameter auto: {self.diameter:.3g} px, from {self.cells} cells; scaled by {self.scale:.3g}"


def training_diameter(meta: Mapping[str, Any]) -> float | None:
    """The median diameter (px) of the cells that a model was trained on, None where its folder does not say."""
    value = (meta.get("training") or {}).get("diameter")
    return float(value) if value else None


def estimate_diameter(
    picture: Picture,
    cells: Callable[[list[Float32]], list[tuple[NDArray[np.int32], Float32]]],
    window: int,
    ours: float,
) -> Estimate:
    return Estimate(scale=1.0, diameter=None, cells=0)
