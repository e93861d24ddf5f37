"""Figures of a result: overlays and outlines as PNG."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.labels.contours import trace_contours
from dinocell.report.overlays import to_rgb
from dinocell.segmentation.result import SegmentationResult

PICTURE_PIXELS = 2**26


def _picture_step(result: SegmentationResult) -> int:
    """Every how many pixels pictures of large images are drawn: viewers refuse PNGs of gigapixels."""
    return math.ceil(math.sqrt(result.labels.size / PICTURE_PIXELS))


def yellow_outlines(result: SegmentationResult) -> NDArray[np.uint8]:
    """The picture in gray with every outline in yellow, one pixel wide: for figures."""
    step = _picture_step(result)
    rgb = to_rgb(result.plane.gray[::step, ::step])
    rgb[trace_contours(result.labels[::step, ::step])] = (255, 220, 0)
    return rgb


def png(rgb: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", rgb[..., ::-1])
    assert done, "OpenCV could not encode a PNG"
    return bytes(data.tobytes())
