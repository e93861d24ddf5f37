"""The one preprocessing of stage 2, for training and inference alike: gray → CLAHE → zero mean, unit variance.

Paper §3.3. Everything works on the whole image. Contrast limits are percentiles whatever the dtype, so the same image
stored as 8 bit, 16 bit or float is preprocessed to the same values, and nothing is rounded to 8 bit on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocell.core import log
from dinocell.core.errors import DataError
from dinocell.core.fields import Settings, field
from dinocell.images.gray.clahe import apply_clahe
from dinocell.images.gray.contrast import HIGH_PERCENTILE, LOW_PERCENTILE, stretch


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Settings):
    """Preprocessing of an image for the network."""

    clahe: bool = field(True, "contrast-limited adaptive histogram equalisation of the whole image (paper)")
    clahe_clip: float = field(1.0, "CLAHE clip limit", "× the mean bin count", above=0, advanced=True)
    clahe_tiles: int = field(8, "CLAHE tiles per side", at_least=1, advanced=True)
    percentile_low: float = field(
        LOW_PERCENTILE, "percentile that becomes black before CLAHE", "%", at_least=0, at_most=100, advanced=True
    )
    percentile_high: float = field(
        HIGH_PERCENTILE, "percentile that becomes white before CLAHE", "%", at_least=0, at_most=100, advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("percentile_low", "percentile_high")


def preprocess_plane(gray: npt.NDArray[Any], config: PreprocessConfig | None = None) -> npt.NDArray[np.float32]:
    """Preprocess a whole gray image (H, W) of any dtype to float32 (H, W) with zero mean and unit variance.

    NaN and infinities take the low end. A constant image comes out as zeros, with a warning.

    Raises:
        DataError: not a plane, or empty.
    """
    config = config or PreprocessConfig()
    if gray.ndim != 2 or gray.size == 0:
        raise DataError(f"preprocess needs a gray image (H, W), got shape {gray.shape}; to_gray() makes one")
    unit = stretch(gray, config.percentile_low, config.percentile_high)
    if unit is None:
        log.warning(f"constant image of {gray.shape[0]}×{gray.shape[1]} px: nothing to normalize, zeros instead")
        return np.zeros(gray.shape, dtype=np.float32)
    if config.clahe:
        unit = apply_clahe(unit, config.clahe_clip, config.clahe_tiles)
    mean, deviation = float(unit.mean(dtype=np.float64)), float(unit.std(dtype=np.float64))
    unit -= np.float32(mean)
    unit *= np.float32(1 / max(deviation, 1e-12))
    return unit
