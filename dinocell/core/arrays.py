"""Array types that many rooms name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Labels = NDArray[np.int32]
"""A label image (H, W): 0 = background, one number per cell."""
