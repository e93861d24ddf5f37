"""Results in the files that other tools open; every file is written whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from scipy import special

from dinocell.checkpoint import AtomicFile, atomic_write_bytes
from dinocell.data.scratch import release
from dinocell.data.zarr_files import write_label_zarr
from dinocell.errors import ConfigError, DataError
from dinocell.inference.outlines import Polygon, cell_polygons
from dinocell.inference.result import SegmentationResult
from dinocell.report.overlays import contours, overlay, to_rgb

Format = Literal["labels", "zarr", "overlay", "outlines", "csv", "geojson", "rois", "npy", "flows", "embeddings"]
FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIXES: dict[Format, str] = {
    "labels": "_labels.tif",
    "zarr": "_labels.ome.zarr",
    "overlay": "_overlay.png",
    "outlines": "_outlines.png",
    "csv": "_cells.csv",
    "geojson": "_cells.geojson",
    "rois": "_rois.zip",
    "npy": "_seg.npy",
    "flows": "_flows.npz",
    "embeddings": "_embeddings.parquet",
}

CELLPOSE_FLOW_SCALE = 5.0
CELLPOSE_LOGIT_LIMIT = 6.0
STREAM_BYTES = 2**27
CLASSIC_TIFF_BYTES = 2**32 - 2**25
TILE = 512
PICTURE_PIXELS = 2**26


def check_formats(save: Sequence[str]) -> tuple[Format, ...]:
    """The formats named, each once, in the order of `FORMATS`.

    Raises:
        ConfigError: none, an unknown one, or one whose package is not installed.
    """
    unknown = [name for name in save if name not in FORMATS]
    if unknown or not save:
        raise ConfigError(f"save: {unknown[0] if unknown else 'nothing'!r} is no format; known: {', '.join(FORMATS)}")
    if "embeddings" in save and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            "save: embeddings are written as Parquet, which needs pyarrow: pip install 'dinocell[parquet]'"
        )
    if "zarr" in save and importlib.util.find_spec("zarr") is None:
        raise ConfigError("save: zarr needs the package of that name: pip install 'dinocell[formats]'")
    return tuple(name for name in FORMATS if name in save)


def output_paths(directory: Path, stem: str, formats: Sequence[Format]) -> dict[Format, Path]:
    """Where `save_result` writes each format."""
    return {name: directory / f"{stem}{SUFFIXES[name]}" for name in formats}


def save_result(
    result: SegmentationResult, directory: Path, stem: str, formats: Sequence[Format], source: str = ""
) -> list[Path]:
    """Write one plane's cells.

    Args:
        result: what `Segmenter.segment` gave.
        directory: made if absent.
        stem: start of every file name.
        formats: out of `FORMATS`.
        source: path of the image, recorded in `_seg.npy` so that Cellpose's window opens it beside the masks.

    Returns:
        The files written, in the order of `formats`.

    Raises:
        DataError: a file cannot be written.
    """
    written = []
    table = result.table() if {"csv", "geojson"} & set(formats) else None
    for name, path in output_paths(directory, stem, formats).items():
        try:
            if name == "labels" and result.labels.nbytes > STREAM_BYTES:
                _stream_label_tiff(path, result.labels, result.plane.pixel_size)
            elif name == "csv" and table is not None:
                with AtomicFile(path) as temporary:
                    table.to_csv(temporary, index=False, float_format="%.6g")
            elif name == "zarr":
                write_label_zarr(path, result.labels, result.plane.pixel_size)
            else:
                atomic_write_bytes(path, _encode(name, result, table, source))
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        written.append(path)
    return written


def _encode(name: Format, result: SegmentationResult, table: pd.DataFrame | None, source: str) -> bytes:
    match name:
        case "labels":
            return label_tiff(result.labels, result.plane.pixel_size)
        case "csv" | "zarr":
            raise AssertionError("written piece by piece by save_result")
        case "overlay":
            step = _picture_step(result)
            return _png(overlay(result.plane.display[::step, ::step], result.labels[::step, ::step]))
        case "outlines":
            return _png(_yellow_outlines(result))
        case "geojson":
            assert table is not None
            return json.dumps(geojson(result.labels, table)).encode()
        case "rois":
            return imagej_rois(result.labels)
        case "npy":
            return _written(lambda file: np.save(file, np.array(cellpose_seg(result, source)), allow_pickle=True))
        case "flows":
            maps = _raw_maps(result)
            return _written(
                lambda file: np.savez_compressed(file, maps=maps, channels=np.array(result.objective.channels))
            )
        case "embeddings":
            return _written(lambda file: result.embedding_table().to_parquet(file, engine="pyarrow", index=False))


def label_tiff(labels: NDArray[Any], pixel_size: float | None) -> bytes:
    """Labels as zlib OME-TIFF: uint16, or uint32 past 65,535; the pixel size in µm as OME metadata and TIFF tags."""
    file = io.BytesIO()
    tifffile.imwrite(file, labels, **_tiff_options(pixel_size))
    return file.getvalue()


def _tiff_options(pixel_size: float | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "YX"}
    options: dict[str, Any] = {"ome": True, "compression": "zlib", "photometric": "minisblack", "metadata": metadata}
    if pixel_size:
        metadata |= {"PhysicalSizeX": pixel_size, "PhysicalSizeY": pixel_size}
        # ImageJ opens OME-TIFF without Bio-Formats too, and then knows only these tags.
        options |= {"resolution": (1e4 / pixel_size, 1e4 / pixel_size), "resolutionunit": "CENTIMETER"}
    return options


def _stream_label_tiff(path: Path, labels: NDArray[Any], pixel_size: float | None) -> None:
    """A large label image as tiled TIFF, tile by tile, under its final name only once it is whole."""

    def tiles() -> Iterator[NDArray[Any]]:
        for y in range(0, labels.shape[0], TILE):
            for x in range(0, labels.shape[1], TILE):
                part = labels[y : y + TILE, x : x + TILE]
                yield np.pad(part, [(0, TILE - part.shape[0]), (0, TILE - part.shape[1])])
            release(labels)

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    layout: dict[str, Any] = {"shape": labels.shape, "dtype": labels.dtype, "tile": (TILE, TILE)}
    layout["bigtiff"] = labels.nbytes > CLASSIC_TIFF_BYTES  # older programs read classic TIFF only
    try:
        tifffile.imwrite(temporary, tiles(), **layout, **_tiff_options(pixel_size))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _picture_step(result: SegmentationResult) -> int:
    """Every how many pixels pictures of large images are drawn: viewers refuse PNGs of gigapixels."""
    return math.ceil(math.sqrt(result.labels.size / PICTURE_PIXELS))


def _yellow_outlines(result: SegmentationResult) -> NDArray[np.uint8]:
    """The picture in gray with every outline in yellow, one pixel wide: for figures."""
    step = _picture_step(result)
    rgb = to_rgb(result.plane.gray[::step, ::step])
    rgb[contours(result.labels[::step, ::step])] = (255, 220, 0)
    return rgb


def _png(rgb: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", rgb[..., ::-1])
    assert done, "OpenCV could not encode a PNG"
    return bytes(data.tobytes())


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def geojson(labels: NDArray[Any], table: pd.DataFrame) -> dict[str, Any]:
    """A GeoJSON FeatureCollection that QuPath opens (drag it onto the image): one detection a cell, with measures.

    Coordinates are pixels of the full image, x right and y down, along pixel edges.
    """
    measures = {int(row["label"]): row for row in table.to_dict("records")}
    features = []
    for number, polygons in cell_polygons(labels):
        row = {key: _plain(value) for key, value in measures[number].items() if key not in ("label", "touches_border")}
        features.append(
            {
                "type": "Feature",
                # The same labels give the same ids, so that importing twice replaces and does not double.
                "id": str(
                    uuid.uuid5(uuid.NAMESPACE_OID, f"{labels.shape} {number} {row['centroid_y']} {row['centroid_x']}")
                ),
                "geometry": _geometry(polygons),
                "properties": {
                    "objectType": "detection",
                    "name": str(number),
                    "classification": {"name": "cell", "color": [255, 220, 0]},
                    "measurements": {key: value for key, value in row.items() if value is not None},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _geometry(polygons: list[Polygon]) -> dict[str, Any]:
    rings = [
        [[*ring.tolist(), ring[0].tolist()] for ring in (polygon.exterior, *polygon.holes)] for polygon in polygons
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def imagej_rois(labels: NDArray[Any]) -> bytes:
    """A zip of ImageJ ROIs for the ROI manager: one traced polygon a cell, named by its label.

    Further pieces of a cell follow as `LABEL-2` …; holes are not kept, an ImageJ polygon has none.
    """
    import roifile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, polygons in cell_polygons(labels):
            for piece, polygon in enumerate(polygons, start=1):
                name = f"{number:05d}" if piece == 1 else f"{number:05d}-{piece}"
                roi = roifile.ImagejRoi.frompoints(polygon.exterior, name=name)
                roi.roitype = roifile.ROI_TYPE.TRACED
                archive.writestr(f"{name}.roi", roi.tobytes())
    return file.getvalue()


def cellpose_seg(result: SegmentationResult, source: str = "") -> dict[str, Any]:
    """The dictionary of Cellpose's `_seg.npy`: masks, outlines and flows in Cellpose's own scales (5×, logits)."""
    flows, probability = result.flows, result.probability
    low = special.expit(-CELLPOSE_LOGIT_LIMIT)
    logit = special.logit(np.clip(probability, low, 1 - low)).astype(np.float32)
    level = np.round(probability * 255).astype(np.uint8)
    colours = flow_colours(flows)
    return {
        "outlines": result.labels * contours(result.labels),
        "masks": result.labels,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(result.count, np.bool_),
        "filename": source,
        "flows": [
            colours[None],
            level[None],
            np.zeros_like(colours)[None],
            [],
            np.concatenate([CELLPOSE_FLOW_SCALE * flows, logit[None]]),
        ],
        "diameter": np.nan,
    }


def flow_colours(flows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Flows (2, H, W) as colours (H, W, 3) uint8: hue is the direction, brightness the length up to 1."""
    hue = (np.degrees(np.arctan2(flows[0], flows[1])) % 360) / 2
    length = np.clip(np.hypot(flows[0], flows[1]), 0, 1)
    hsv = np.stack([hue, np.full_like(hue, 255), 255 * length], axis=-1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _raw_maps(result: SegmentationResult) -> NDArray[np.float32]:
    if result.maps is not None:
        return result.maps
    return np.zeros((len(result.objective.channels), *result.labels.shape), np.float32)
