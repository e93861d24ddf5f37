"""Detection of masks that are flipped, shifted or unrelated to their image.

The image's edges under the mask's outlines are compared with those under turns and shifts of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from dinocell.images.geometry.resize import resize_image, resize_labels
from dinocell.labels.cells import equivalent_diameters
from dinocell.labels.contours import trace_contours

LARGEST_SIDE = 768
"""px; larger images are looked at shrunk, which takes milliseconds instead of seconds and keeps every edge."""

BETTER = 1.5  # a turn or a shift is reported when its edges are this much stronger than those of the mask as it is
ON_EDGES = 1.4  # and on edges at all: this much stronger than the image's mean gradient
UNRELATED = 1.2
UNRELATED_DEVIATIONS = 2.0  # of the strengths under all shifts: noise of chance


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Alignment of a mask with its image.

    Attributes:
        better_turn: name of a mirroring or turn of the mask that fits far better, or "".
        better_shift: (down, right) in px by which the mask fits far better, or None.
        unrelated: outlines are not on edges, as those of another image's mask would.
    """

    better_turn: str = ""
    better_shift: tuple[int, int] | None = None
    unrelated: bool = False


def align(image: NDArray[np.float32], labels: NDArray[np.int32]) -> Alignment:
    """Compare an image (H, W) with its labels; nothing is said of images without contrast or cells.

    Edge strength is the mean gradient on cell outlines over the image's mean gradient (gradients beyond the 99th
    percentile count as that, or one bright spot would decide).
    """
    image, labels, scale = _shrunk(image, labels)
    gradient = np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))
    gradient = np.minimum(gradient, np.percentile(gradient, 99))
    mean = float(gradient.mean())
    outline = trace_contours(labels)
    if mean < 1e-6 or not outline.any():
        return Alignment()
    own = float(gradient[outline].mean()) / mean
    turn = _better_turn(gradient / mean, outline, own)
    if turn:
        return Alignment(better_turn=turn)
    strengths, centre = _strengths_of_shifts(gradient / mean, outline)
    best = np.unravel_index(int(strengths.argmax()), strengths.shape)
    down, right = int(best[0]) - centre[0], int(best[1]) - centre[1]
    cells = max(1, len(np.unique(labels)) - 1)
    diameter = float(equivalent_diameters(np.count_nonzero(labels) / cells))
    # Outlines drawn inside or outside of an edge fit better a few pixels off: that is a habit, not a mistake.
    far = np.hypot(down, right) >= max(4.0, 0.2 * diameter)
    if far and strengths.max() > max(ON_EDGES, BETTER * own):
        return Alignment(better_shift=(round(down * scale), round(right * scale)))
    return Alignment(unrelated=bool(own < UNRELATED and own - 1 < UNRELATED_DEVIATIONS * strengths.std()))


def _shrunk(
    image: NDArray[np.float32], labels: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32], float]:
    """Image and labels of at most LARGEST_SIDE px, and the factor back to the original size."""
    scale = max(image.shape) / LARGEST_SIDE
    if scale <= 1:
        return image, labels, 1.0
    height, width = (max(1, round(side / scale)) for side in image.shape)
    return resize_image(image, (height, width)), resize_labels(labels, (height, width)), scale


def _better_turn(gradient: NDArray[np.float32], outline: NDArray[np.bool_], own: float) -> str:
    turns = {"upside down": outline[::-1], "mirrored": outline[:, ::-1], "turned by 180 degrees": outline[::-1, ::-1]}
    if outline.shape[0] == outline.shape[1]:
        turns["transposed (x and y swapped)"] = outline.T
    name, best = max(((n, float(gradient[t].mean())) for n, t in turns.items()), key=lambda pair: pair[1])
    return name if best > max(ON_EDGES, BETTER * own) else ""


def _strengths_of_shifts(
    gradient: NDArray[np.float32], outline: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Edge strength under the outline shifted by up to a quarter of the image, and the array index of no shift.

    What leaves the image counts as the mean gradient, so that no shift gains by leaving.
    """
    height, width = gradient.shape
    size = (fft.next_fast_len(height + height // 4 + 1), fft.next_fast_len(width + width // 4 + 1))
    product = fft.rfft2(gradient - 1.0, size) * np.conj(fft.rfft2(outline.astype(np.float32), size))
    sums = np.roll(fft.irfft2(product, size), (height // 4, width // 4), (0, 1))
    strengths = sums[: 2 * (height // 4) + 1, : 2 * (width // 4) + 1] / np.count_nonzero(outline) + 1.0
    return np.asarray(strengths, np.float64), (height // 4, width // 4)
