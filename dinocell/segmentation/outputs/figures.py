"""Figures of a result as PNG: an overlay with one colour per cell, and yellow outlines on gray."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.labels.contours import trace_contours
from dinocell.report.overlays import overlay, to_rgb
from dinocell.segmentation.outputs.format import Format, PlaneOutput, encoded
from dinocell.segmentation.result import SegmentationResult

FIGURE_PIXELS = 2**26


def _overlay(output: PlaneOutput) -> bytes:
    result, step = output.result, _step(output.result)
    return _png(overlay(result.plane.display[::step, ::step], result.labels[::step, ::step]))


def _outlines(output: PlaneOutput) -> bytes:
    """Draw every outline in yellow on the gray image, one pixel wide."""
    result, step = output.result, _step(output.result)
    rgb = to_rgb(result.plane.gray[::step, ::step])
    rgb[trace_contours(result.labels[::step, ::step])] = (255, 220, 0)
    return _png(rgb)


def _step(result: SegmentationResult) -> int:
    """Subsampling step for figures of large images: viewers refuse PNGs of gigapixels."""
    return math.ceil(math.sqrt(result.labels.size / FIGURE_PIXELS))


def _png(rgb: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", rgb[..., ::-1])
    assert done, "OpenCV could not encode a PNG"
    return bytes(data.tobytes())


OVERLAY = Format(name="overlay", suffix="_overlay.png", write=encoded(_overlay))
OUTLINES = Format(name="outlines", suffix="_outlines.png", write=encoded(_outlines))
