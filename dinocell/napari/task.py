"""Segmenting the array of an image layer, without Qt: progress after every window, cancel before every window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinocell.core.errors import DataError, DinoCellError
from dinocell.images.image import ImageFile
from dinocell.images.planes import Plane, iter_planes, open_image
from dinocell.labels.cells import compact_dtype
from dinocell.models import ModelCard
from dinocell.segmentation.diameter import MOST_WINDOWS
from dinocell.segmentation.notes import Note
from dinocell.segmentation.options import SegmentOptions
from dinocell.segmentation.result import SegmentationResult
from dinocell.segmentation.segmenter import Segmenter

Index = tuple[int, ...]
Report = Callable[[float], None]


class Cancelled(Exception):
    """The user cancelled."""


@dataclass(frozen=True, kw_only=True)
class LayerCells:
    """Content of a labels layer.

    Attributes:
        labels: (…, H, W) uint16, uint32 past 65,535 cells; a label is used once in the whole stack.
        features: one row per cell; `index` is its label, as napari requires; `plane` (or `plane_0` …) its plane.
        notes: what the user should know, with the plane it is about.
    """

    labels: NDArray[Any]
    features: pd.DataFrame
    notes: tuple[Note, ...]


def chosen_options(*, estimate: bool, diameter: float, threshold: float) -> SegmentOptions:
    """Options for what the form shows, where 0 stands for the image's own scale and for the model's threshold."""
    return SegmentOptions(diameter="auto" if estimate else diameter or "own", threshold=threshold or None)


def estimates_by_default(folder: Path) -> bool:
    """Report whether a model folder asks for estimated diameters; False for what is not a model folder."""
    try:
        return ModelCard.read(folder).rescales
    except DinoCellError:
        return False


def plane_indices(shape: Sequence[int], rgb: bool) -> list[Index]:
    """Indices of the planes of a layer's array along its leading axes; [()] for a plain image."""
    return list(np.ndindex(*shape[: -3 if rgb else -2]))


def segment_layer(
    segmenter: Segmenter,
    data: Any,
    *,
    rgb: bool = False,
    options: SegmentOptions | None = None,
    pixel_size: float | None = None,
    planes: Sequence[Index] | None = None,
    report: Report = lambda part: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> LayerCells:
    """Segment each plane of a layer on its own.

    Args:
        data: (…, H, W), with `rgb` (…, H, W, 3 or 4); anything that is indexed like an array, read plane by plane.
        options: decoding options; axes, channel and z are the layer's business.
        pixel_size: µm per pixel, for areas in µm².
        planes: which planes, as `plane_indices` gives them; default: all. The labels of others are 0.
        report: gets the part that is done, 0 … 1.
        cancelled: asked before every window.

    Raises:
        Cancelled: `cancelled` said so.
        DataError: the array has fewer than two axes, or is not numeric.
    """
    options = options or SegmentOptions()
    if len(data.shape) < (3 if rgb else 2):
        raise DataError(f"an image layer has rows and columns; this one has the shape {tuple(data.shape)}")
    chosen = plane_indices(data.shape, rgb) if planes is None else list(planes)
    results = []
    for number, index in enumerate(chosen):
        if cancelled():
            raise Cancelled
        image = ImageFile(
            array=np.asarray(data[index]), axes="YXS" if rgb else "YX", axes_source="given", pixel_size=pixel_size
        )
        plane = next(iter_planes(open_image(image)))

        def told(part: float, done: int = number) -> None:
            report((done + part) / len(chosen))

        results.append(_segment(segmenter, plane, options, told, cancelled))
        report((number + 1) / len(chosen))
    return _joined(tuple(data.shape[: -3 if rgb else -2]), chosen, results)


def _segment(
    segmenter: Segmenter, plane: Plane, options: SegmentOptions, report: Report, cancelled: Callable[[], bool]
) -> SegmentationResult:
    """Segment one plane; the windows of the estimate of its scale, if it needs one, count as the others do."""
    runner = segmenter.runner
    parts = [MOST_WINDOWS] if segmenter.estimates(options) else []
    parts.append(runner.views * len(segmenter.place(plane.size).windows(runner.overlap)))
    starts = np.cumsum([0, *parts]) / sum(parts)
    part = -1

    def on_windows(done: int, total: int) -> None:
        nonlocal part
        part += not done  # each begins with 0 windows
        if done:
            report(starts[part] + (starts[part + 1] - starts[part]) * done / total)
        if cancelled():
            raise Cancelled

    segmenter.runner = replace(runner, on_windows=on_windows)
    try:
        if segmenter.is_large(plane, options):
            return segmenter.segment_large(plane, options)
        job, maps = next(segmenter.predict([segmenter.prepare(plane, options)]))
        return segmenter.finish(job, maps, options)
    finally:
        segmenter.runner = runner


def _of_plane(note: Note, index: Index) -> Note:
    return replace(note, text=f"plane {index}: {note.text}") if index else note


def _joined(leading: Index, chosen: Sequence[Index], results: Sequence[SegmentationResult]) -> LayerCells:
    """Planes as one array of labels that are used once, and one table."""
    height, width = results[0].labels.shape
    labels = np.zeros((*leading, height, width), np.uint32)
    tables, notes, offset = [], [], 0
    names = ["plane"] if len(leading) == 1 else [f"plane_{axis}" for axis in range(len(leading))]
    for index, result in zip(chosen, results, strict=True):
        found = result.labels.astype(np.uint32)
        labels[index] = np.where(found, found + np.uint32(offset), 0)
        table = result.table()
        table["label"] += offset
        for position, (name, where) in enumerate(zip(names, index, strict=True)):
            table.insert(1 + position, name, where)
        tables.append(table)
        notes += [_of_plane(note, index) for note in result.notes]
        offset += result.count
    features = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    features = features.dropna(axis=1, how="all") if len(features) else features  # µm² without a pixel size
    features = features.rename(columns={"label": "index"})
    return LayerCells(labels=compact_dtype(labels), features=features, notes=tuple(notes))
