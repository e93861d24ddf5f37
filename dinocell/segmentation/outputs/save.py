"""Results in the files that other tools open; every file is written whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinocell.core.errors import ConfigError, DataError
from dinocell.core.files import AtomicFile, atomic_write_bytes
from dinocell.images.readers.zarr import write_label_zarr
from dinocell.report.overlays import overlay
from dinocell.segmentation.outputs.cellpose import cellpose_seg
from dinocell.segmentation.outputs.figures import _picture_step, png, yellow_outlines
from dinocell.segmentation.outputs.polygons import cells_to_geojson, imagej_rois
from dinocell.segmentation.outputs.tiff import STREAM_BYTES, label_tiff, stream_label_tiff
from dinocell.segmentation.result import SegmentationResult

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
                stream_label_tiff(path, result.labels, result.plane.pixel_size)
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
            return png(overlay(result.plane.display[::step, ::step], result.labels[::step, ::step]))
        case "outlines":
            return png(yellow_outlines(result))
        case "geojson":
            assert table is not None
            return json.dumps(cells_to_geojson(result.labels, table)).encode()
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


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _raw_maps(result: SegmentationResult) -> NDArray[np.float32]:
    if result.maps is not None:
        return result.maps
    return np.zeros((len(result.objective.channels), *result.labels.shape), np.float32)
