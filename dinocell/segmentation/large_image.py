"""Segmentation of one image too large for memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.arrays import Float32
from dinocell.images.mapped import band_rows, release
from dinocell.images.planes import InputPlane
from dinocell.labels.cells import MAX_UINT16
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.large.blocks import BLOCK, decode_blocks, split_blocks
from dinocell.predict.large.regions import Source
from dinocell.predict.large.work_folder import Scratch
from dinocell.predict.placement import Placement
from dinocell.predict.runner import Runner
from dinocell.predict.windows import starts
from dinocell.segmentation.notes import CONSTANT, Note
from dinocell.segmentation.result import SegmentationResult


def segment_large(
    runner: Runner,
    plane: InputPlane,
    source: Source,
    place: Placement,
    config: ObjectiveConfig,
    *,
    scratch: Scratch | None = None,
    notes: tuple[Note, ...] = (),
) -> SegmentationResult:
    """Segment an image of any size, with progress; labels and maps in scratch files.

    The cells are those of whole-image decoding up to their numbers (see `blocks`). `source` is the plane's frame, see
    `Placement.source`; labels come back at the plane's size.
    """
    scratch = scratch or Scratch()
    objective = build_objective(config)
    if source.constant:
        notes = (*notes, CONSTANT)
        empty = scratch.array("final", plane.size, np.uint16, "writing")
        return SegmentationResult(labels=empty, maps=None, objective=objective, plane=plane, notes=notes)
    rows = runner.large(source, len(objective.channels), scratch)
    total, maps = len(starts(source.size[0], runner.window, runner.overlap)), np.zeros(0, np.float32)
    for _, partial in log.progress(rows, "network", total - scratch.done("network"), "rows of windows"):
        maps = partial
    seen: Any = place.undo_lazily(maps)
    labels = _decoded(seen, maps, config, plane, scratch)
    return SegmentationResult(labels=labels, maps=seen, objective=objective, plane=plane, notes=notes)


def _decoded(seen: Any, maps: Float32, config: ObjectiveConfig, plane: InputPlane, scratch: Scratch) -> NDArray[Any]:
    """Labels (H, W) in scratch, decoded block by block; blocks that an earlier run finished are not decoded again."""
    labels = scratch.array("labels", plane.size, np.uint32, "decoding")
    first, count = scratch.done("decoding"), scratch.done("cells")
    if scratch.resumed:  # cells of the block that was being decoded are found again
        step = band_rows(labels.shape, labels.dtype.itemsize)
        for top in range(0, len(labels), step):
            part = labels[top : top + step]
            part[part > count] = 0
            release(labels)
    steps = decode_blocks(seen, config, labels, BLOCK, first=first, count=count)
    total = len(split_blocks(plane.size, BLOCK))
    for done, found in enumerate(log.progress(steps, "decoding", total - first, "blocks"), start=first + 1):
        count = found
        scratch.commit(labels, decoding=done, cells=count)
        release(maps)
        release(labels)
    return _cleaned(labels, plane.gray, count, scratch)


def _cleaned(labels: NDArray[Any], gray: NDArray[Any], count: int, scratch: Scratch) -> NDArray[Any]:
    """Labels without cells on NaN pixels, as uint16 if they fit."""
    small = count <= MAX_UINT16
    target = scratch.array("final", labels.shape, np.uint16, "writing") if small else labels
    step = band_rows(labels.shape, labels.dtype.itemsize)
    for top in range(0, len(labels), step):
        rows = slice(top, top + step)
        part = labels[rows]
        if gray.dtype.kind == "f":
            part = np.where(np.isfinite(gray[rows]), part, 0)
        target[rows] = part
        for array in (labels, target, gray):
            release(array)
    return target
