"""Placement of an image in a network's windows: its scale, the padding or mirroring around it, and the way back.

Training, validation, segmentation and embeddings share it, so that a network meets an image the same way in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from dinocell.core.arrays import Float32
from dinocell.images.geometry.resize import resize_image, resize_labels, resize_maps
from dinocell.models.folder import Fit
from dinocell.predict.large.regions import FilledSource, ScaledMaps, ScaledSource, Source
from dinocell.predict.windows import Window, covering_windows

Size = tuple[int, int]
Fill = Literal["mirror", "edge", "zero"]
"""Continuation of the image below and to the right: its mirror image, its last row and column, or 0, its mean."""

MAX_UPSCALE = 8.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One image as one network sees it; made by `Placement.of`. All sizes are (height, width) in px.

    Attributes:
        size: the image.
        scale: factor from the image's pixels to the model's, without the enlarging of small images to a window.
        scaled: the image at that scale.
        shown: the upper left part of the frame that shows the image.
        frame: the network's input, both sides at least `window`.
        window: side of the windows that the frame is cut into.
        fit: rule that gave `shown`.
        fill: rule for the part of the frame outside `shown`.
    """

    size: Size
    scale: float
    scaled: Size
    shown: Size
    frame: Size
    window: int
    fit: Fit
    fill: Fill

    @classmethod
    def of(cls, size: Size, *, window: int, fit: Fit = "tile", scale: float = 1.0, rescales: bool = False) -> Placement:
        """Place an image of `size` in windows.

        An image smaller than the window is enlarged until its short side fills it, its aspect kept, by a factor of 8 at
        most (a strip a few pixels high contains no cell to enlarge). A model that `rescales` images to one size of
        cells is shown it at `scale` all the same.

        Args:
            window: side of the network's input, px.
            fit: see `Fit`.
            scale: factor from the image's pixels to the model's.
            rescales: mirror images smaller than the window instead of enlarging them again.
        """
        scaled = _times(size, scale)
        match fit:
            case "resize":
                shown = window, window
            case "pad":
                shown = _times(scaled, window / max(scaled))
            case "tile":
                enlarged = 1.0 if rescales else max(1.0, min(window / min(scaled), MAX_UPSCALE))
                shown = _times(scaled, enlarged)
            case _:
                assert_never(fit)
        fill: Fill = "zero" if fit != "tile" else "mirror" if rescales else "edge"
        frame = max(shown[0], window), max(shown[1], window)
        return cls(size=size, scale=scale, scaled=scaled, shown=shown, frame=frame, window=window, fit=fit, fill=fill)

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that show the image."""
        return slice(0, self.shown[0]), slice(0, self.shown[1])

    def windows(self, overlap: int) -> list[Window]:
        """Windows that cover the frame, neighbours sharing at least `overlap` px."""
        return covering_windows(self.frame, self.window, overlap)

    def image(self, z: NDArray[Any]) -> Float32:
        """Make the frame, float32, of a preprocessed image (H, W); the image itself where nothing is to be done."""
        assert z.shape == self.size, f"an image of {z.shape} was placed as one of {self.size}"
        for size in (self.scaled, self.shown):
            z = resize_image(z, size)
        z = np.ascontiguousarray(z, np.float32)
        match self.fill:
            case "mirror":
                return self._filled(z, mode="symmetric")
            case "edge":
                return self._filled(z, mode="edge")
            case "zero":
                return self._filled(z)
        assert_never(self.fill)

    def source(self, image: Source) -> Source:
        """Place an image that is read by region: the frame that `image` gives, up to rounding; for `fit` tile."""
        assert self.fill != "zero" and image.size == self.size
        for size in (self.scaled, self.shown):
            image = image if size == image.size else ScaledSource(image, size)
        return image if self.frame == self.shown else FilledSource(image, self.frame, self.fill)

    def labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Place labels (H, W) on the frame, by nearest neighbour; 0 outside the image."""
        return self._filled(resize_labels(labels, self.shown))

    def mask(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Mark the pixels of the frame in a mask (H, W) of the image and all outside the image; None without any."""
        if self.frame == self.shown:
            return None if mask is None else resize_labels(mask, self.shown)
        outside = np.ones(self.frame, bool)
        outside[self.inside] = False if mask is None else resize_labels(mask, self.shown)
        return outside

    def undo(self, maps: Float32) -> Float32:
        """Bring maps (K, h, w) of the frame back to the image's size, (K, H, W)."""
        maps = np.ascontiguousarray(maps[(slice(None), *self.inside)])
        if self.fit == "tile":
            maps = resize_maps(maps, self.scaled)
        return resize_maps(maps, self.size)

    def undo_lazily(self, maps: Float32) -> Float32 | ScaledMaps:
        """Do as `undo`, up to rounding, for maps too large for memory, where they are read; for `fit` tile."""
        seen: Float32 | ScaledMaps = maps[(slice(None), *self.inside)]
        for size in (self.scaled, self.size):
            seen = seen if seen.shape[1:] == size else ScaledMaps(seen, size)
        return seen

    def undo_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Bring labels, or weights, (h, w) of the frame back to the image's size (H, W), by nearest neighbour."""
        return resize_labels(labels[self.inside], self.size)

    def _filled(self, array: NDArray[Any], **how: Any) -> NDArray[Any]:
        missing = [(0, wanted - length) for wanted, length in zip(self.frame, array.shape, strict=True)]
        return np.pad(array, missing, **how) if any(after for _, after in missing) else array


def _times(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
