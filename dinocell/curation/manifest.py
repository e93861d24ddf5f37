"""manifest.csv and rejected.csv: one row for everything that was kept, one for everything that was not."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dinocell.core.files import atomic_write_text

Value = str | int | float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One crop, or a file or plane without one. The first twelve columns are a contract with other programs.

    Attributes:
        crop: path of the PNG below the output folder; of a rejected crop, its path if it was written.
        source: the image file as it was named.
        source_sha256: of the file's bytes.
        dataset: group of the source.
        modality: as given by the user, else a guess from the brightness: fluorescence or transmitted.
        channel: plane of the source, e.g. gray, luma, c0, combined, t003_c1; s1_… of a second series.
        y, x: top left corner of the crop in the plane, px.
        height, width: size of the crop, px.
        laplacian_variance: of the crop as cut from the whole 8-bit plane, gray levels².
        status: kept or rejected.
        axes, axes_source: meaning of the array's axes, and how it is known.
        shape, dtype: of the array.
        low, high: values of the plane that became 0 and 255.
        pixel_size: µm.
        focus, structure, occupied: see `filters.score_crop`.
        reason, detail, duplicate_of: why it was rejected.
    """

    crop: str = ""
    source: str
    source_sha256: str = ""
    dataset: str = ""
    modality: str = ""
    channel: str = ""
    y: Value = ""
    x: Value = ""
    height: Value = ""
    width: Value = ""
    laplacian_variance: Value = ""
    status: str
    axes: str = ""
    axes_source: str = ""
    shape: str = ""
    dtype: str = ""
    low: Value = ""
    high: Value = ""
    pixel_size: Value = ""
    focus: Value = ""
    structure: Value = ""
    occupied: Value = ""
    reason: str = ""
    detail: str = ""
    duplicate_of: str = ""


COLUMNS = tuple(item.name for item in fields(Row))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file with a header; floats with six significant digits. The file is whole or absent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_shown(value) for value in vars(row).values()])
    atomic_write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a manifest or rejected file, every value as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
