"""Results in the files that other tools open; every file is written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell.core.errors import ConfigError, DataError
from dinocell.segmentation.outputs.cellpose import SEG_NPY
from dinocell.segmentation.outputs.figures import OUTLINES, OVERLAY
from dinocell.segmentation.outputs.format import Format, PlaneOutput
from dinocell.segmentation.outputs.labels import TIFF, ZARR
from dinocell.segmentation.outputs.maps import FLOWS
from dinocell.segmentation.outputs.polygons import GEOJSON, ROIS
from dinocell.segmentation.outputs.tables import CSV, EMBEDDINGS
from dinocell.segmentation.result import SegmentationResult

_ALL = (TIFF, ZARR, OVERLAY, OUTLINES, CSV, GEOJSON, ROIS, SEG_NPY, FLOWS, EMBEDDINGS)
FORMATS: dict[str, Format] = {one.name: one for one in _ALL}


def check_formats(save: str | Sequence[str]) -> tuple[Format, ...]:
    """Look up the formats named, each once, in the order of `FORMATS`.

    Args:
        save: names, or one text with commas between them, as on a command line.

    Raises:
        ConfigError: none, an unknown one, or one whose package is not installed.
    """
    names = [name for part in save.split(",") if (name := part.strip())] if isinstance(save, str) else list(save)
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(
            f"save: {unknown[0] if unknown else 'nothing'!r} is not a format; known: {', '.join(FORMATS)}"
        )
    formats = tuple(one for name, one in FORMATS.items() if name in names)
    for one in formats:
        one.check_installed()
    return formats


def output_paths(directory: Path, stem: str, formats: Sequence[Format]) -> list[Path]:
    """The file of each format, in their order."""
    return [directory / f"{stem}{one.suffix}" for one in formats]


def save_result(
    result: SegmentationResult, directory: Path, stem: str, formats: Sequence[Format], source: str = ""
) -> list[Path]:
    """Write one plane's cells.

    Args:
        result: what `Segmenter.segment` gave.
        directory: made if absent.
        stem: start of every file name.
        formats: as `check_formats` gives them.
        source: path of the image, recorded in `_seg.npy` so that Cellpose's window opens it beside the masks.

    Returns:
        The files written, in the order of `formats`.

    Raises:
        DataError: a file cannot be written.
    """
    output, paths = PlaneOutput(result=result, source=source), output_paths(directory, stem, formats)
    for one, path in zip(formats, paths, strict=True):
        try:
            one.write(path, output)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    return paths
