"""Segmenting many images as a job array: each task takes a share of the files, a last job joins their summaries."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinocell.core import log
from dinocell.core.errors import DataError
from dinocell.core.files import atomic_write_bytes
from dinocell.labels.files import read_labels

SUMMARY_NAME = "summary.csv"
FOLDER = ".shards"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One task's share of the files: every `count`-th from `index` on.

    `since` (seconds since 1970) is when the array began: results written later are this array's own and stay when a
    task starts again; older ones come from other settings or another model and are made anew.
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
    rows = sorted((row for part in parts for row in _rows(part)), key=lambda row: row["image"])
    for row in rows:
        if row["status"] == "skipped":  # made before its task was started again, which lost the count
            _count_again(row, out)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", "plane", "stem", "status", "cells", "note"])
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_bytes(out / SUMMARY_NAME, text.getvalue().encode())
    for part in parts:
        part.unlink()
    failed = [row for row in rows if row["status"] == "failed"]
    log.info(f"{len(rows) - len(failed)} of {len(rows)} planes are segmented: {out / SUMMARY_NAME}")
    for row in failed:
        log.warning(f"{row['image']}: failed: {row['note']}")
    return len(failed)


def _rows(part: Path) -> list[dict[str, str]]:
    with part.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _count_again(row: dict[str, str], out: Path) -> None:
    labels = out / f"{row['stem']}_labels.tif"
    if labels.is_file():
        row["status"], row["cells"] = "done", str(np.count_nonzero(np.unique(read_labels(labels))))
