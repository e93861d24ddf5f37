"""Vector maps as colours."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def flow_colours(flows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Flows (2, H, W) as colours (H, W, 3) uint8: hue is the direction, brightness the length up to 1."""
    hue = (np.degrees(np.arctan2(flows[0], flows[1])) % 360) / 2
    length = np.clip(np.hypot(flows[0], flows[1]), 0, 1)
    hsv = np.stack([hue, np.full_like(hue, 255), 255 * length], axis=-1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
