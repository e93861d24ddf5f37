"""Segmenting many images as a job array: each task takes a share of the files, a last job joins their summaries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinocell.core import log
from dinocell.core.errors import DataError
from dinocell.labels.files import read_labels
from dinocell.segmentation.outputs.labels import TIFF
from dinocell.segmentation.outputs.save import output_paths
from dinocell.segmentation.summary import SUMMARY_NAME, Row, read_rows, write_rows

FOLDER = ".shards"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One task's share of the files: every `count`-th from `index` on.

    `since` (seconds since 1970) is when the array began: results written later are this array's own and stay when a
    task is started again; older ones come from other settings or another model and are made again.
    """

    index: int
    count: int
    since: float

    def summary(self, out: Path) -> Path:
        """The file of this share's summary."""
        return out / FOLDER / f"summary-{self.index}-of-{self.count}.csv"


def merge_shards(out: Path, count: int) -> int:
    """Join the summaries of an array of `count` tasks into summary.csv, sorted by image.

    Returns:
        The number of planes that failed.

    Raises:
        DataError: a task has not finished.
    """
    parts = [Shard(index=index, count=count, since=0.0).summary(out) for index in range(count)]
    missing = [str(index) for index, part in enumerate(parts) if not part.is_file()]
    if missing:
        raise DataError(f"{str(out)!r}: task(s) {', '.join(missing)} of {count} have not finished; submit them again")
    rows = [_counted(row, out) for part in parts for row in read_rows(part)]
    rows.sort(key=lambda row: row["image"])
    write_rows(out / SUMMARY_NAME, rows)
    for part in parts:
        part.unlink()
    failed = [row for row in rows if row["status"] == "failed"]
    log.info(f"{len(rows) - len(failed)} of {len(rows)} planes are segmented: {out / SUMMARY_NAME}")
    for row in failed:
        log.warning(f"{row['image']}: failed: {row['note']}")
    return len(failed)


def _counted(row: Row, out: Path) -> Row:
    """The row with the cells of a plane that was made before its task was started again, which lost their number."""
    [labels] = output_paths(out, row["stem"], (TIFF,))
    if row["status"] != "skipped" or not labels.is_file():
        return row
    return {**row, "status": "done", "cells": str(np.count_nonzero(np.unique(read_labels(labels))))}
