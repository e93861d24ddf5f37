"""The typical diameter of the cells in an image, estimated with the model itself.

A network that predicts flows tells by itself whether it sees cells of a size it knows: the flows it predicts are then
those of the cells that come out of them, which have that size. So parts of the image are segmented at several scales,
and the scale where both hold best says how large the cells are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinocell.core.arrays import Float32
from dinocell.core.errors import ConfigError
from dinocell.labels.cells import equivalent_diameters, find_cells
from dinocell.models.training_record import CellDiameters, Training
from dinocell.objectives import Objective
from dinocell.predict.large.regions import ScaledSource, Source
from dinocell.predict.placement import Placement
from dinocell.predict.runner import Runner
from dinocell.segmentation.notes import Note
from dinocell.segmentation.options import SegmentOptions

SCALES = tuple(2.0 ** (step / 2) for step in range(-4, 5))
WINDOWS = 4
CANDIDATES = 8
DOUBT = 0.6
"""Added to the flow error, divided by the evidence: two small cells that fit well by chance prove little."""
COVER = 80
"""Evidence is the number of cells and this many times the square of what they cover of the windows looked at: one cell
that fills half of the image counts as 21, one that fills a twentieth as one."""
HYPOTHESES = 3
"""So many of the scales that fit best are looked at again, each where its cells would have the size the model knows;
one more is that which fits best when the size counts."""
MISFIT = 0.5
"""Added for each factor of two between the cells that a model finds at a scale and the sizes that it knows."""
FAR = 0.05
"""Added for each factor of two by which a scale is smaller than the usual one."""
ENLARGED = 0.1
"""Added for each factor of two by which it is larger: enlarged specks often look like round cells."""
FEW = 2
MOST_FOR_FEW = 2.0
"""So few cells are no evidence for a scale that differs from the usual one by more than so many factors of two: a whole
colony, shrunk to a dot, fits as a single cell."""
SURE = 0.6
"""Flow error with doubt, and with how far the scale is, above which the cells found are no better than what a network
finds in texture; enlarged texture most of all."""
WARNED = 0.5
"""The same, above which the user is told to look."""
MAX_RESCALE = 16.0
MOST_WINDOWS = (len(SCALES) + HYPOTHESES + 1) * WINDOWS
"""Windows that an estimate runs through the network at most."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Result of the estimate.

    Attributes:
        scale: factor from the image's pixels to the model's; when not sure, that of the training images.
        diameter: of the cells, px of the image; None when not sure.
        cells: number of cells looked at.
        error: mean squared flow error of these cells.
        misfit: by how many factors of two these cells, at that scale, miss the sizes that the model knows.
        far: by how many factors of two the scale is above the usual one; below it, negative.
        share: part of the windows looked at that these cells cover.
        doubtful: whether there is a diameter, but the user should look whether it is right.
    """

    scale: float
    diameter: float | None
    cells: int
    error: float = np.inf
    misfit: float = 0.0
    far: float = 0.0
    share: float = 0.0
    doubtful: bool = False

    @property
    def note(self) -> Note:
        """Sentence for the user; a warning where the diameter is unknown or in doubt."""
        cells = f"{self.cells} cell{'s' if self.cells != 1 else ''}"
        if self.diameter is None:
            found = f"{cells} seen, recognized poorly" if self.cells else "no cells seen"
            scaled = "image scale kept" if self.scale == 1 else f"scaled by {self.scale:.3g}, as in training"
            text = f"diameter auto: not sure ({found}), {scaled}; give the diameter if the cells come out wrong"
            return Note(text=text, severity="warning")
        kept = "image scale kept, within the model's training range"
        scaled = kept if self.scale == 1 else f"scaled by {self.scale:.3g}"
        if self.doubtful:
            found = f"perhaps {self.diameter:.3g} px ({cells} seen, recognized poorly)"
            text = f"diameter auto: not sure, {found}: {scaled}; give the diameter if it is wrong"
            return Note(text=text, severity="warning")
        return Note(text=f"diameter auto: {self.diameter:.3g} px, from {cells}: {scaled}", severity="info")


def told_scale(training: Training, options: SegmentOptions) -> float:
    """Factor from the image's pixels to the model's that the user asked for; 1 where nothing was.

    Raises:
        ConfigError: the model does not know its own size, or the factor is beyond reason.
    """
    assert options.diameter != "auto", "its scale is estimated"
    if options.diameter == "own":
        return 1.0
    if not isinstance(options.diameter, str):
        ours, theirs, name = training.diameter, options.diameter, "diameter"
        scale = None if not ours else ours / theirs
    elif options.pixel_size is not None:
        ours, theirs, name = training.pixel_size, options.pixel_size, "pixel_size"
        scale = None if not ours else theirs / ours
    else:
        return 1.0
    if scale is None:
        if name == "pixel_size":
            return 1.0  # still used for areas in µm²
        raise ConfigError(f"{name}: this model does not record the {name} it was trained at; leave {name} out")
    if not 1 / MAX_RESCALE <= scale <= MAX_RESCALE:
        raise ConfigError(f"{name}: {theirs:g} scales the image by {scale:.3g}; the model was trained at {ours:g}")
    return float(scale)


def estimate_diameter(image: Source, runner: Runner, objective: Objective, trained: CellDiameters) -> Estimate:
    """Estimate the typical diameter of the cells in an image, and the scale at which the model should see it.

    Args:
        image: preprocessed.
        runner: of the model; `MOST_WINDOWS` windows go through it at most.
        objective: of the model, with a `cell_check` that is turned off.
        trained: diameters that the model knows.
    """

    def look(scale: float) -> Estimate:
        return _look(image, runner, objective, scale, trained)

    grid = [look(scale) for scale in SCALES]
    looks = [*sorted(grid, key=_fit)[:HYPOTHESES], min(grid, key=_rank)]
    again = {trained.median / found.diameter for found in looks if found.diameter is not None}
    best = min([*looks, *(look(scale) for scale in sorted(again))], key=_rank)
    if best.diameter is None or _fit(best) > SURE:
        return Estimate(scale=trained.usual, diameter=None, cells=best.cells, error=best.error)
    return Estimate(
        scale=trained.scale_for(best.diameter),
        diameter=best.diameter,
        cells=best.cells,
        error=best.error,
        doubtful=_fit(best) > WARNED,
    )


def _rank(estimate: Estimate) -> float:
    return _fit(estimate) + MISFIT * estimate.misfit


def _fit(estimate: Estimate) -> float:
    return _doubtful_error(estimate) + max(ENLARGED * estimate.far, -FAR * estimate.far)


def _doubtful_error(estimate: Estimate) -> float:
    if estimate.cells <= FEW and abs(estimate.far) > MOST_FOR_FEW:
        return np.inf
    return estimate.error + DOUBT / max(estimate.cells + COVER * estimate.share**2, 1)


def _look(image: Source, runner: Runner, objective: Objective, scale: float, trained: CellDiameters) -> Estimate:
    """Find cells in some windows of the image at one scale; its mirror image beyond the edges does not count."""
    diameters: list[NDArray[np.float64]] = []
    total = area = covered = seen = 0.0
    window = runner.window
    parts = _windows(image, window, scale)
    frames = [Placement.of(_shape(part), window=window, rescales=True).image(part) for part in parts]
    for part, maps in zip(parts, runner.single(frames), strict=True):
        height, width = part.shape
        seen += height * width
        cells = find_cells(objective.decode(maps))
        if not len(cells.numbers):
            continue
        errors = objective.cell_errors(maps, cells)
        middle = (cells.boxes[:, :2] + cells.boxes[:, 2:]) / 2  # y, x
        own = (middle < [height, width]).all(axis=1)
        total += float((errors * cells.areas)[own].sum())
        area += float(cells.areas[own].sum())
        inside = own & (cells.boxes[:, :2] > 0).all(axis=1) & (cells.boxes[:, 2:] < window).all(axis=1)
        covered += float(cells.areas[inside].sum())
        diameters.append(equivalent_diameters(cells.areas[inside]) / scale)
    found = np.concatenate(diameters) if diameters else np.zeros(0)
    if not len(found):
        return Estimate(scale=scale, diameter=None, cells=0)
    diameter = float(np.median(found))
    misfit, far = abs(float(np.log2(trained.scale_for(diameter * scale)))), float(np.log2(scale / trained.usual))
    return Estimate(
        scale=scale,
        diameter=diameter,
        cells=len(found),
        error=total / area,
        misfit=misfit,
        far=far,
        share=min(covered / seen, 1.0),
    )


def _windows(image: Source, window: int, scale: float) -> list[Float32]:
    """Cut the parts with the most contrast out of some spread over the image; smaller than a window where it is."""
    size = (max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale)))
    scaled = image if size == image.size else ScaledSource(image, size)
    places = _places(size, window)
    parts = [scaled.region(slice(y, min(y + window, size[0])), slice(x, min(x + window, size[1]))) for y, x in places]
    parts.sort(key=lambda part: -float(part.std()))
    return parts[:WINDOWS]


def _places(size: tuple[int, int], window: int) -> list[tuple[int, int]]:
    """Corners of up to `CANDIDATES` windows, spread evenly over all that do not overlap."""
    free = [(y, x) for y in _starts(size[0], window) for x in _starts(size[1], window)]
    chosen = np.unique(np.linspace(0, len(free) - 1, CANDIDATES).round().astype(int))
    return [free[number] for number in chosen]


def _starts(length: int, window: int) -> list[int]:
    count = max(1, length // window)
    slack = max(0, length - count * window)
    return [number * window + round(slack * (number + 0.5) / count) for number in range(count)]


def _shape(part: Float32) -> tuple[int, int]:
    return part.shape[0], part.shape[1]
