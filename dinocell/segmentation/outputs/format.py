"""Output format: the name that a user types, the file it becomes, and its writer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from dinocell.core.errors import ConfigError
from dinocell.core.files import atomic_write_bytes
from dinocell.segmentation.result import SegmentationResult


@dataclass(frozen=True, kw_only=True)
class PlaneOutput:
    """One plane's result on its way into files.

    Attributes:
        result: what `Segmenter.segment` gave.
        source: path of the image, "" for an array.
    """

    result: SegmentationResult
    source: str = ""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell, measured once for all formats that contain measures."""
        return self.result.table()


Writer = Callable[[Path, PlaneOutput], None]
"""Writes one file whole or not at all; OSError where it cannot."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that results are saved in.

    Attributes:
        name: what `save` calls it.
        suffix: end of the file's name, after the stem of its plane.
        write: its writer.
        package: an importable package that it requires beyond the base installation, "" for none.
        extra: the extra of this project that installs the package.
        needs_embeddings: it requires the embeddings of the cells, which are made on request only.
    """

    name: str
    suffix: str
    write: Writer
    package: str = ""
    extra: str = ""
    needs_embeddings: bool = False

    def check_installed(self) -> None:
        """Refuse a format whose package is missing before any image is segmented.

        Raises:
            ConfigError: the package is not installed.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ConfigError(f"save: {self.name} needs {self.package}: pip install 'dinocell[{self.extra}]'")


def encoded(encode: Callable[[PlaneOutput], bytes]) -> Writer:
    """Make the writer of a format whose file fits into memory."""

    def write(path: Path, output: PlaneOutput) -> None:
        atomic_write_bytes(path, encode(output))

    return write
