"""One source file → its crops on disk and a record of every decision; pure but for the files it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from dinocell.core.config import to_dict
from dinocell.core.errors import DataError, first_line
from dinocell.core.files import atomic_write_bytes
from dinocell.curation.best_window import best_crops
from dinocell.curation.config import CurateConfig
from dinocell.curation.duplicates import thumbnail, thumbnail_to_text
from dinocell.curation.filters import Gray, Plane, Rejection, check_crop, check_plane, halve, score_crop
from dinocell.curation.manifest import Row
from dinocell.curation.records import CROPS, Found
from dinocell.curation.sources import Source
from dinocell.curation.thumbnails import encode_jpeg, shrink
from dinocell.images.gray.channels import TRANSMITTED, planes
from dinocell.images.gray.contrast import histogram, limits, scale_to_uint8
from dinocell.images.image import ImageFile
from dinocell.images.read import read_series

VERSION = 3
"""Raised when the same file and config give other crops than before; older records are then discarded."""
WITHOUT_EFFECT = ("sources", "out", "dataset", "workers", "shard_index", "shard_count", "merge", "sheet_limit")
LATER_FILTERS = ("duplicates", "max_hash_distance", "min_correlation")
READ_AT_ONCE = 2**24
"""Bytes below which a file is hashed in one piece."""
DARK = 64
"""Median gray level of an 8-bit crop below which light on a dark ground is taken for fluorescence."""


def fingerprint(config: CurateConfig) -> str:
    """Hash of the settings that change the result of one file."""
    relevant = {name: value for name, value in to_dict(config).items() if name not in WITHOUT_EFFECT}
    relevant["filters"] = {k: v for k, v in relevant["filters"].items() if k not in LATER_FILTERS}
    return hashlib.sha256(json.dumps([VERSION, relevant], sort_keys=True).encode()).hexdigest()[:16]


def extract_source(source: Source, config: CurateConfig) -> list[Found]:
    """Write the crops of one file below OUT/crops and return the records of kept and rejected ones.

    A file never raises: an error in reading becomes a rejected row, after the crops that came before it.
    """
    cv2.setNumThreads(1)  # the workers are the parallelism
    row = Row(source=source.path, dataset=source.dataset, status="rejected")
    found: list[Found] = []
    try:
        row = Row(
            source=source.path, dataset=source.dataset, status="rejected", source_sha256=_sha256(Path(source.path))
        )
        max_bytes = int(config.max_gib * 2**30)
        for image in read_series(source.path, axes=config.axes, t_step=config.t_step, max_bytes=max_bytes):
            found += _extract_image(image, row, source, config)
        return found
    except (DataError, OSError, MemoryError, ValueError, cv2.error) as error:
        detail = first_line(error).removeprefix(source.path).removeprefix(": ")
        return [*found, Found(row=replace(row, reason="unreadable", detail=detail))]


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
        modality = config.modality or modality_of(name, image.channel_names)
        if row.modality != modality:
            row = replace(row, modality=modality)
        yield from _extract_plane(plane, prefix + name, row, source, config)


def _extract_plane(plane: Plane, name: str, row: Row, source: Source, config: CurateConfig) -> Iterator[Found]:
    counts = histogram(plane) if plane.dtype in (np.uint8, np.uint16) else None
    rejection = check_plane(plane, config.filters, counts)
    low, high = limits(plane, config.percentile_low, config.percentile_high, counts)
    gray = scale_to_uint8(plane, low, high)
    if rejection is not None:
        height, width = plane.shape
        row = replace(row, channel=name, low=low, high=high, height=height, width=width)
        yield _reject(row, rejection, shrink(gray))
        return
    del plane
    windows = best_crops(gray, config.size, config.crops_per_image, config.max_overlap)
    for number, (y, x, variance) in enumerate(windows):
        crop = np.ascontiguousarray(gray[y : y + config.size, x : x + config.size])
        half = halve(crop)
        scores = score_crop(crop, half)
        small = shrink(half)
        suffix = f"_{number}" if config.crops_per_image > 1 else ""
        rejection = check_crop(scores, config.filters)
        found = replace(
            row,
            status="kept" if rejection is None else "rejected",
            crop=f"{CROPS}/{source.key}__{name}{suffix}.png" if rejection is None else "",
            channel=name,
            low=low,
            high=high,
            modality=row.modality or _by_brightness(small),
            y=y,
            x=x,
            height=crop.shape[0],
            width=crop.shape[1],
            laplacian_variance=variance,
            focus=scores.focus,
            structure=scores.structure,
            occupied=scores.occupied,
        )
        yield _keep(found, crop, small, config) if rejection is None else _reject(found, rejection, small)


def _keep(row: Row, crop: Gray, small: Gray, config: CurateConfig) -> Found:
    # not durable: a flush to the disk per crop would cost more time than all the rest of it
    atomic_write_bytes(Path(config.out, row.crop), cv2.imencode(".png", crop)[1].data, durable=False)
    return Found(row=row, small=thumbnail_to_text(thumbnail(shrink(small, 128))), picture=encode_jpeg(small))


def _reject(row: Row, rejection: Rejection, small: Gray) -> Found:
    row = replace(row, reason=rejection.reason, detail=rejection.detail)
    return Found(row=row, picture=encode_jpeg(small))


def modality_of(plane: str, channel_names: tuple[str, ...]) -> str:
    """Guess the modality from a plane's name: a channel called phase, BF, DIC or alike, luma of a bright image,
    combined dyes. Empty if the name says nothing; `_by_brightness` guesses then.
    """
    if plane.endswith("luma"):
        return "transmitted"
    if plane.endswith("combined"):
        return "fluorescence"
    number = plane.rpartition("_")[2].removeprefix("c")
    if number.isdigit() and int(number) < len(channel_names) and TRANSMITTED.search(channel_names[int(number)]):
        return "transmitted"
    return ""


def _by_brightness(small: Gray) -> str:
    """Guess from brightness: mostly dark counts as fluorescence, the rest as transmitted light."""
    return "fluorescence" if 2 * np.count_nonzero(small < DARK) > small.size else "transmitted"


def _sha256(path: Path) -> str:
    """Hash of a file; of a folder (OME-Zarr), over the names and bytes of all files in it."""
    if path.is_file():
        with path.open("rb", buffering=0) as stream:
            if path.stat().st_size < READ_AT_ONCE:
                return hashlib.sha256(stream.read()).hexdigest()
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(inside for inside in path.rglob("*") if inside.is_file()):
        digest.update(str(file.relative_to(path)).encode() + b"\0" + _sha256(file).encode())
    return digest.hexdigest()
