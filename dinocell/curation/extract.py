"""One source file → its crops on disk and a record of everything that was decided. Pure but for the files it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dinocell.config import to_dict
from dinocell.curation.config import CurateConfig
from dinocell.curation.duplicates import encode, pixel_hash, thumbnail
from dinocell.curation.filters import Gray, Plane, Rejection, check_crop, check_plane, halve, score_crop
from dinocell.curation.focus import best_crops
from dinocell.curation.manifest import Row
from dinocell.curation.sources import Source
from dinocell.data.files import atomic_write_bytes
from dinocell.data.image import ImageFile
from dinocell.data.io import planes, read_series
from dinocell.data.preprocess import histogram, limits, scale_to_uint8
from dinocell.errors import DataError

VERSION = 1
"""Raised when the same file and config give other crops than before; older records are then made anew."""
SHEET_SIDE = 160
"""Longer side (px) of the pictures on the contact sheet."""
STATE = ".curation"
CROPS = "crops"
SET_ASIDE = "set_aside"
WITHOUT_EFFECT = ("sources", "out", "dataset", "workers", "shard_index", "shard_count", "merge", "sheet_limit")
LATER_FILTERS = ("duplicates", "max_hash_distance", "min_correlation")
DARK = 64
"""Median grey level of an 8-bit crop below which light on a dark ground is taken for fluorescence."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A row of the tables to be, with what duplicates are found by and its picture for the contact sheet."""

    row: Row
    pixels: str = ""
    small: str = ""
    sheet: str = ""


def fingerprint(config: CurateConfig) -> str:
    """Hash of everything in a config that changes what one file gives."""
    relevant = {name: value for name, value in to_dict(config).items() if name not in WITHOUT_EFFECT}
    relevant["filters"] = {k: v for k, v in relevant["filters"].items() if k not in LATER_FILTERS}
    return hashlib.sha256(json.dumps([VERSION, relevant], sort_keys=True).encode()).hexdigest()[:16]


def extract(source: Source, config: CurateConfig) -> list[Found]:
    """Write the crops of one file below OUT/crops and return what was kept and what was not.

    Never raises for a file's sake: whatever goes wrong in reading becomes a rejected row.
    """
    cv2.setNumThreads(1)  # the workers are the parallelism
    row = Row(source=source.path, dataset=source.dataset, status="rejected")
    try:
        row = replace(row, source_sha256=_sha256(Path(source.path)))
        max_bytes = int(config.max_gib * 2**30)
        found: list[Found] = []
        for image in read_series(source.path, axes=config.axes, t_step=config.t_step, max_bytes=max_bytes):
            found += _extract_image(image, row, source, config)
        return found
    except (DataError, OSError, MemoryError, ValueError, cv2.error) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        detail = text.removeprefix(source.path).removeprefix(": ")
        return [Found(row=replace(row, reason="unreadable", detail=detail))]


def _extract_image(image: ImageFile, row: Row, source: Source, config: CurateConfig) -> Iterator[Found]:
    row = replace(
        row,
        axes=image.axes,
        axes_source=image.axes_source,
        shape="×".join(str(side) for side in image.array.shape),
        dtype=str(image.array.dtype),
        pixel_size=image.pixel_size if image.pixel_size else "",
    )
    prefix = f"{image.series}_" if image.series else ""
    for name, plane in planes(image, z=config.z, colour=config.colour, combined=config.combined):
        yield from _extract_plane(plane, replace(row, channel=prefix + name), source, config)


def _extract_plane(plane: Plane, row: Row, source: Source, config: CurateConfig) -> Iterator[Found]:
    counts = histogram(plane) if plane.dtype in (np.uint8, np.uint16) else None
    rejection = check_plane(plane, config.filters, counts)
    low, high = limits(plane, config.percentile_low, config.percentile_high, counts)
    gray = scale_to_uint8(plane, low, high)
    row = replace(row, low=low, high=high)
    if rejection is not None:
        yield _reject(replace(row, height=plane.shape[0], width=plane.shape[1]), rejection, gray, source, config)
        return
    del plane
    windows = best_crops(gray, config.size, config.crops_per_image, config.max_overlap)
    for number, (y, x, variance) in enumerate(windows):
        crop = np.ascontiguousarray(gray[y : y + config.size, x : x + config.size])
        scores = score_crop(crop)
        suffix = f"_{number}" if config.crops_per_image > 1 else ""
        found = replace(
            row,
            crop=f"{CROPS}/{source.key}__{row.channel}{suffix}.png",
            modality=config.modality or _modality(crop),
            y=y,
            x=x,
            height=crop.shape[0],
            width=crop.shape[1],
            laplacian_variance=variance,
            focus=scores.focus,
            structure=scores.structure,
            occupied=scores.occupied,
        )
        rejection = check_crop(scores, config.filters)
        if rejection is not None:
            yield _reject(found, rejection, crop, source, config, suffix)
        else:
            yield _keep(found, crop, config)


def _keep(row: Row, crop: Gray, config: CurateConfig) -> Found:
    coded = cv2.imencode(".png", crop)[1].tobytes()
    atomic_write_bytes(Path(config.out, row.crop), coded)
    sheet = f"{STATE}/sheet/{row.crop.removeprefix(f'{CROPS}/')}.jpg"
    half = halve(crop)
    _write_sheet_picture(Path(config.out, sheet), half)
    row = replace(row, status="kept")
    return Found(row=row, pixels=pixel_hash(crop), small=encode(thumbnail(half)), sheet=sheet)


def _reject(
    row: Row, rejection: Rejection, gray: Gray, source: Source, config: CurateConfig, suffix: str = ""
) -> Found:
    sheet = f"{STATE}/sheet/{source.key}__{row.channel}{suffix}.png.jpg"
    _write_sheet_picture(Path(config.out, sheet), gray)
    return Found(row=replace(row, crop="", reason=rejection.reason, detail=rejection.detail), sheet=sheet)


def _write_sheet_picture(path: Path, gray: Gray) -> None:
    while max(gray.shape) >= 4 * SHEET_SIDE:  # exact halves are many times faster than one odd step
        gray = halve(gray)
    scale = min(SHEET_SIDE / max(gray.shape), 1)
    size = max(round(gray.shape[1] * scale), 1), max(round(gray.shape[0] * scale), 1)
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    atomic_write_bytes(path, cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def _modality(crop: Gray) -> str:
    """A guess, no more: mostly dark is taken for fluorescence, the rest for transmitted light."""
    return "fluorescence" if float(np.median(crop[::8, ::8])) < DARK else "transmitted"


def _sha256(path: Path) -> str:
    """Of a file; of a folder (OME-Zarr), of the names and bytes of all files in it."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(inside for inside in path.rglob("*") if inside.is_file()):
        digest.update(str(file.relative_to(path)).encode() + b"\0" + _sha256(file).encode())
    return digest.hexdigest()


def to_record(found: list[Found]) -> list[dict[str, Any]]:
    """Plain values for the journal."""
    return [
        {"row": item.row.__dict__, "pixels": item.pixels, "small": item.small, "sheet": item.sheet} for item in found
    ]


def from_record(record: list[dict[str, Any]]) -> list[Found]:
    """Inverse of `to_record`."""
    return [Found(row=Row(**item["row"]), **{k: item[k] for k in ("pixels", "small", "sheet")}) for item in record]
