"""Patch tokens as colours: the first three principal components shown as red, green and blue (paper §4.1, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.report.overlays import panel, to_rgb

Tokens = NDArray[np.floating[Any]]
"""Patch tokens of one image on their grid: (h, w, D)."""

# A component's values reach the ends of the colour range at this many standard deviations.
_RANGE_SIGMA = 2.2


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear map from tokens to standardised principal components.

    mean: (D,); directions: (n, D), orthonormal rows, by falling variance; scale: (n,) standard deviations.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    scale: NDArray[np.float64]

    def components(self, tokens: Tokens) -> NDArray[np.float64]:
        """(h, w, D) → (h, w, n): mean 0 and variance 1 over the tokens the projection was fitted on."""
        centred = np.asarray(tokens, np.float64) - self.mean
        return np.asarray(centred @ self.directions.T / self.scale)


def fit_projection(tokens: Sequence[Tokens], count: int = 3) -> Projection:
    """Principal components of all tokens together.

    Args:
        tokens: arrays (h, w, D) with one D; their grids may differ.
        count: how many components, at most D.

    Raises:
        ValueError: no tokens, or an array that is not (h, w, D) with the same D.
    """
    widths = {array.shape[-1] for array in tokens}
    if not tokens or any(array.ndim != 3 for array in tokens) or len(widths) != 1:
        raise ValueError(f"tokens must be (h, w, D) arrays of one D; got {[array.shape for array in tokens]}")
    rows = np.concatenate([np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in tokens])  # [N, D]
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    directions = vectors[:, ::-1][:, :count].T  # [n, D]
    # An eigenvector's sign is arbitrary; fixing it keeps the colours of two runs on the same tokens equal.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions = directions * np.where(largest < 0, -1.0, 1.0)
    spread = np.sqrt(np.clip(variances[::-1][:count], 0, None))
    # A component without variance would blow rounding noise up to full colour; it is shown as mid-gray instead.
    scale = np.where(spread > 1e-9 * max(float(spread[0]), 1e-300), spread, np.inf)
    return Projection(mean=mean, directions=directions, scale=scale)


def pca_rgb(tokens: Sequence[Tokens], *, shared: bool = True) -> list[NDArray[np.uint8]]:
    """Colour the tokens of each image by their first three principal components.

    Args:
        tokens: one (h, w, D) array per image, D ≥ 3.
        shared: one projection for all images, so that a colour means the same in each; else one per image.

    Returns:
        One (h, w, 3) uint8 per image.
    """
    common = fit_projection(tokens) if shared else None
    pictures = []
    for array in tokens:
        values = (common or fit_projection([array])).components(array)
        unit = np.clip(values / (2 * _RANGE_SIGMA) + 0.5, 0, 1)
        pictures.append(np.round(unit * 255).astype(np.uint8))
    return pictures


def pca_panel(
    images: Sequence[NDArray[Any]],
    models: Mapping[str, Sequence[Tokens]],
    *,
    shared: bool = True,
    height: int = 280,
) -> NDArray[np.uint8]:
    """One row per image: the image, then its patch tokens under each model.

    Args:
        images: (H, W) or (H, W, C) arrays of any dtype.
        models: model's name → its tokens (h, w, D) for each image, in the order of `images`; D may differ by model.
        shared: one projection per model over all images, else one per image.
        height: height in pixels of each image in the panel.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: a model's number of token arrays is not the number of images.
    """
    for name, tokens in models.items():
        if len(tokens) != len(images):
            raise ValueError(f"model {name!r} has tokens for {len(tokens)} images; there are {len(images)}")
    coloured = {name: pca_rgb(tokens, shared=shared) for name, tokens in models.items()}
    tiles: list[NDArray[Any]] = []
    titles: list[str] = []
    for index, image in enumerate(images):
        rgb = to_rgb(image)
        tiles.append(rgb)
        titles.append("image" if index == 0 else "")
        for name, pictures in coloured.items():
            size = (rgb.shape[1], rgb.shape[0])
            tiles.append(np.asarray(cv2.resize(pictures[index], size, interpolation=cv2.INTER_NEAREST), np.uint8))
            titles.append(name if index == 0 else "")
    return panel(tiles, titles, columns=1 + len(models), height=height)


def pca_grid(
    images: Sequence[NDArray[Any]],
    titles: Sequence[str],
    models: Mapping[str, Sequence[Tokens]],
    *,
    shared: bool = True,
    height: int = 280,
) -> NDArray[np.uint8]:
    """One column per image (its title above it) and one row per model or stage, as in Figure 3 of the paper.

    Args:
        images: (H, W) or (H, W, C) arrays of any dtype; the same one may stand in several columns.
        titles: one per image.
        models: model's name → its tokens (h, w, D) for each image, in the order of `images`; D may differ by model.
        shared: one projection per model over all its images, else one per image.
        height: height in pixels of each image in the grid.

    Returns:
        (H, W, 3) uint8.
    """
    tiles: list[NDArray[Any]] = [to_rgb(image) for image in images]
    sizes = [(tile.shape[1], tile.shape[0]) for tile in tiles]
    names = list(titles)
    for name, tokens in models.items():
        for index, picture in enumerate(pca_rgb(tokens, shared=shared)):
            tiles.append(np.asarray(cv2.resize(picture, sizes[index], interpolation=cv2.INTER_NEAREST), np.uint8))
            names.append(name if index == 0 else "")
    return panel(tiles, names, columns=len(images), height=height)
