"""Label images: TIFF and OME-Zarr."""

from __future__ import annotations

from pathlib import Path

from dinocell.labels.files import write_labels
from dinocell.segmentation.outputs.format import Format, PlaneOutput
from dinocell.segmentation.outputs.label_zarr import write_label_zarr


def _write_tiff(path: Path, output: PlaneOutput) -> None:
    write_labels(path, output.result.labels, output.result.plane.pixel_size)


def _write_zarr(path: Path, output: PlaneOutput) -> None:
    write_label_zarr(path, output.result.labels, output.result.plane.pixel_size)


TIFF = Format(name="labels", suffix="_labels.tif", write=_write_tiff)
ZARR = Format(name="zarr", suffix="_labels.ome.zarr", write=_write_zarr, package="zarr", extra="formats")
