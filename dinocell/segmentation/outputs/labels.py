"""Label images: TIFF and OME-Zarr."""

from __future__ import annotations

from pathlib import Path

from dinocell.core.files import atomic_write_bytes
from dinocell.images.readers.zarr import write_label_zarr
from dinocell.segmentation.outputs import tiff
from dinocell.segmentation.outputs.format import Format, PlaneOutput


def _write_tiff(path: Path, output: PlaneOutput) -> None:
    labels, pixel_size = output.result.labels, output.result.plane.pixel_size
    if labels.nbytes > tiff.STREAM_BYTES:
        tiff.stream_label_tiff(path, labels, pixel_size)
    else:
        atomic_write_bytes(path, tiff.label_tiff(labels, pixel_size))


def _write_zarr(path: Path, output: PlaneOutput) -> None:
    write_label_zarr(path, output.result.labels, output.result.plane.pixel_size)


TIFF = Format(name="labels", suffix="_labels.tif", write=_write_tiff)
ZARR = Format(name="zarr", suffix="_labels.ome.zarr", write=_write_zarr, package="zarr", extra="formats")
