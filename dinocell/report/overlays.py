"""Labels drawn on images: outlines per cell, error maps, and titled panels; all return RGB uint8 arrays."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.arrays import UInt8
from dinocell.images.geometry.resize import resize_image
from dinocell.images.gray.contrast import to_uint8
from dinocell.labels.cells import renumber
from dinocell.labels.contours import inner_edges, trace_contours

TRUE_POSITIVE = (46, 172, 102)
FALSE_POSITIVE = (222, 62, 58)
FALSE_NEGATIVE = (52, 120, 230)

_HUES = (0.14, 0.92, 0.50, 0.30, 0.78, 0.04, 0.58, 0.21, 0.86, 0.42, 0.68, 0.10)
_PALETTE: UInt8 = np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(h, 0.75, 1.0)] for h in _HUES], np.uint8)

# Outlines one pixel wide on a 512-px field stay thin to the eye when a 2,000-px field is shown at the same size.
_PIXELS_PER_OUTLINE_PIXEL = 512


def to_rgb(image: NDArray[Any]) -> UInt8:
    """Show any image: uint8 RGB as it is, everything else stretched from its 0.1 to its 99.9 percentile.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any dtype; alpha is dropped; NaN shows as black.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the array has another number of dimensions or channels.
    """
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] in (1, 3, 4):
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    elif array.ndim != 2:
        raise ValueError(f"image has shape {array.shape}; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8 or array.ndim == 2:
        # The stretch takes planes; channels side by side keep one common range, and with it the colours.
        array = to_uint8(array.reshape(array.shape[0], -1)).reshape(array.shape)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)  # [H, W, 3]
    # A copy, so that what is drawn on the result never lands in the caller's image.
    return np.array(array, np.uint8, order="C")


def overlay(image: NDArray[Any], labels: NDArray[Any], *, thickness: int | None = None, fill: float = 0.0) -> UInt8:
    """Draw the outline of every cell on the image, in a colour its neighbours do not have.

    Args:
        image: (H, W) or (H, W, C) of any dtype.
        labels: (H, W) integers, 0 = background.
        thickness: outline width in pixels; by default 1 up to 512 px, growing with the image.
        fill: opacity in [0, 1] of the colour inside the cells.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and labels differ in height or width.
    """
    rgb = to_rgb(image)
    _check_same_size(rgb, labels, "labels")
    compact, count = renumber(labels)
    colours = _colours(compact, count)[compact]  # [H, W, 3]
    if fill > 0:
        inside = compact > 0
        rgb[inside] = np.round((1 - fill) * rgb[inside] + fill * colours[inside]).astype(np.uint8)
    edge = inner_edges(compact, thickness or _default_thickness(rgb))
    rgb[edge] = colours[edge]
    return rgb


def error_map(truth: NDArray[Any], prediction: NDArray[Any], image: NDArray[Any] | None = None) -> UInt8:
    """Colour each pixel by agreement: green in both, red only predicted (FP), blue only in the truth (FN).

    Args:
        truth, prediction: (H, W) integer labels or bool masks, 0 = background.
        image: shown dimmed under the colours; black without one.

    Returns:
        (H, W, 3) uint8; borders between cells of the truth stay visible as thin dark lines when an image is given.

    Raises:
        ValueError: the sizes differ.
    """
    actual, predicted = np.asarray(truth) > 0, np.asarray(prediction) > 0
    if actual.shape != predicted.shape:
        raise ValueError(f"prediction has shape {predicted.shape}, truth has {actual.shape}")
    colours = np.zeros((*actual.shape, 3), np.uint8)
    colours[actual & predicted] = TRUE_POSITIVE
    colours[~actual & predicted] = FALSE_POSITIVE
    colours[actual & ~predicted] = FALSE_NEGATIVE
    if image is None:
        return colours
    rgb = to_rgb(image)
    _check_same_size(rgb, actual, "truth")
    marked = actual | predicted
    blended = rgb * 0.6
    blended[marked] = 0.45 * rgb[marked] + 0.55 * colours[marked]
    blended[trace_contours(truth, _default_thickness(rgb))] *= 0.45
    return np.round(blended).astype(np.uint8)


def panel(
    images: Sequence[NDArray[Any]], titles: Sequence[str], *, columns: int | None = None, height: int = 320
) -> UInt8:
    """Set images side by side on white, each with its title above.

    Args:
        images: arrays that `to_rgb` takes; each is scaled to `height` pixels.
        titles: one per image; may be empty strings.
        columns: images per row; all in one row by default.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: no image, or the number of titles differs.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"panel got {len(images)} images and {len(titles)} titles; give one title per image")
    per_row = columns or len(images)
    tiles = [_scaled(to_rgb(image), height) for image in images]
    rows = [range(start, min(start + per_row, len(tiles))) for start in range(0, len(tiles), per_row)]
    widths = [max(tiles[row[c]].shape[1] for row in rows if c < len(row)) for c in range(min(per_row, len(tiles)))]
    gap, header = 8, 26 if any(titles) else 0
    canvas = np.full(
        (len(rows) * (header + height + gap) + gap, sum(widths) + gap * (len(widths) + 1), 3), 255, np.uint8
    )
    written: list[tuple[int, int, str]] = []
    for r, row in enumerate(rows):
        top = gap + r * (header + height + gap)
        left = gap
        for c, index in enumerate(row):
            tile = tiles[index]
            canvas[top + header : top + header + height, left : left + tile.shape[1]] = tile
            written.append((top + header - 7, left, titles[index]))
            left += widths[c] + gap
    return _write(canvas, written)


def _colours(compact: NDArray[np.int32], count: int) -> UInt8:
    neighbours: list[set[int]] = [set() for _ in range(count + 1)]
    for low, high in _neighbour_pairs(compact):
        neighbours[low].add(high)
        neighbours[high].add(low)
    chosen = np.zeros(count + 1, np.intp)
    for cell in range(1, count + 1):
        taken = {int(chosen[other]) for other in neighbours[cell] if other < cell}
        # Starting at a rotating hue spreads all hues over the field instead of a handful.
        order = [(cell * 5 + step) % len(_PALETTE) for step in range(len(_PALETTE))]
        chosen[cell] = next((hue for hue in order if hue not in taken), order[0])
    colours = _PALETTE[chosen]
    colours[0] = 0
    return colours


def _neighbour_pairs(compact: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Pairs (a < b) of cells that touch or face each other across a few pixels."""
    height, width = compact.shape
    base = int(compact.max(initial=0)) + 1
    keys = np.zeros(0, np.int64)
    for reach in (1, 4, 8):
        for dy, dx in ((0, reach), (reach, 0), (reach, reach), (reach, -reach)):
            if dy >= height or abs(dx) >= width:
                continue
            first = compact[: height - dy, max(0, -dx) : width - max(0, dx)]
            second = compact[dy:, max(0, dx) : width + min(0, dx)]
            differ = (first != second) & (first > 0) & (second > 0)
            a, b = first[differ].astype(np.int64), second[differ].astype(np.int64)
            keys = np.union1d(keys, np.minimum(a, b) * base + np.maximum(a, b))
    return [(int(key // base), int(key % base)) for key in keys]


def _default_thickness(rgb: UInt8) -> int:
    return max(1, round(min(rgb.shape[:2]) / _PIXELS_PER_OUTLINE_PIXEL))


def _check_same_size(rgb: UInt8, labels: NDArray[Any], name: str) -> None:
    if rgb.shape[:2] != np.shape(labels):
        raise ValueError(f"{name} have shape {np.shape(labels)}, the image has {rgb.shape[:2]}")


def _scaled(rgb: UInt8, height: int) -> UInt8:
    factor = height / rgb.shape[0]
    # Enlarged pixels stay squares: smoothing would invent what neither camera nor network gave.
    return resize_image(rgb, (height, max(1, round(rgb.shape[1] * factor))), enlarging="nearest")


def _write(canvas: UInt8, written: Sequence[tuple[int, int, str]]) -> UInt8:
    """Set text on the canvas; each entry is (baseline y, left x, text)."""
    if not any(text for _, _, text in written):
        return canvas
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    agg = FigureCanvasAgg(figure)
    figure.figimage(canvas, origin="upper")
    for y, x, text in written:
        figure.text(x / width, 1 - y / height, text, fontsize=10, color="#2b3138", va="baseline")
    agg.draw()
    return np.ascontiguousarray(np.asarray(agg.buffer_rgba())[:height, :width, :3])
