"""Segmentation of many images into one folder of results."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from dinocell.core import log
from dinocell.core.device import Precision
from dinocell.core.errors import ConfigError
from dinocell.images.listing import list_images
from dinocell.segmentation.naming import unique_stems
from dinocell.segmentation.options import SegmentKwargs, SegmentOptions
from dinocell.segmentation.outputs.save import check_formats
from dinocell.segmentation.pipeline import Pipeline
from dinocell.segmentation.segmenter import Segmenter
from dinocell.segmentation.shards import Shard
from dinocell.segmentation.summary import SUMMARY_NAME, RunSummary, Target


def run(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Segmenter | None = None,
    *,
    save: str | Sequence[str] = "labels",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    views: int | None = None,
    skip_existing: bool = False,
    shard: Shard | None = None,
    options: SegmentOptions | None = None,
    **changes: Unpack[SegmentKwargs],
) -> RunSummary:
    """Segment images, folders and patterns; results go to `out` as `STEM_labels.tif` and what else `save` names.

    Planes of stacks are segmented each on its own, as `STEM_t003_z012_labels.tif`. Inputs with the same stem get their
    folder or extension in the name (`naming.unique_stems`). `summary.csv` lists every plane with its number of cells
    or the reason why it failed.

    Args:
        inputs: files, folders (recursively; masks and earlier results in them are left out) and glob patterns.
        out: folder of the results, made if absent.
        model: a model folder, a packaged name, or a `Segmenter`; default: the packaged model.
        save: names out of `outputs.save.FORMATS`, or one text with commas between them.
        device: see `Segmenter`; not used with a `Segmenter`, as precision, batch_size and views.
        precision: see `Segmenter`.
        batch_size: windows per forward, across images.
        views: see `Segmenter`.
        skip_existing: leave planes whose results are all there.
        shard: only this share of the files, as a task of a job array; `merge_shards` then writes summary.csv.
        options: reading and decoding options.
        **changes: single fields of `SegmentOptions`, e.g. `channel=0`.

    Raises:
        ConfigError: an unknown format or option, inputs that match nothing, no model.
    """
    formats, options = check_formats(save), (options or SegmentOptions()).changed(changes)
    if any(one.needs_embeddings for one in formats):
        options = options.changed({"embeddings": True})
    files = image_files(inputs)
    if not isinstance(model, Segmenter):
        model = Segmenter(model, device=device, precision=precision, batch_size=batch_size, views=views)
    options.decoding(model.objective)  # an impossible threshold is an error of the command, not of every image
    log.info(model.describe())
    started = time.monotonic()
    keep_since = shard.since if shard is not None else 0.0 if skip_existing else math.inf
    pipeline = Pipeline(model, Path(out), formats, options, keep_since)
    stems = unique_stems(files)  # of all files, or two shards could meet in one name
    targets = [Target(file=file, stem=stem) for file, stem in zip(files, stems, strict=True)]
    share = targets[shard.index :: shard.count] if shard is not None else targets
    outcomes = tuple(pipeline.outcomes(share))
    summary = RunSummary(outcomes=outcomes, seconds=time.monotonic() - started)
    summary.write(Path(out) / SUMMARY_NAME if shard is None else shard.summary(Path(out)))
    summary.tell(Path(out))
    return summary


def image_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the files that `run` would segment.

    Raises:
        ConfigError: there are none.
    """
    files = list_images(inputs)
    if not files:
        raise ConfigError(f"{', '.join(os.fspath(entry) for entry in inputs)}: no images there")
    return files
