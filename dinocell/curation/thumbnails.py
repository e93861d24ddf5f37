"""Thumbnails of the contact sheet, one file per job (a file per crop would cost more than its pixels)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.curation.filters import halve

Gray = npt.NDArray[np.uint8]

SIDE = 160
"""Longer side (px) of a thumbnail on the contact sheet."""


def shrink(gray: Gray, side: int = 2 * SIDE) -> Gray:
    """Halve an image until its longer side is below `side` (px); smaller images are returned as they are."""
    while max(gray.shape) >= side and min(gray.shape) >= 2:
        gray = halve(gray)
    return gray


def encode_jpeg(gray: Gray) -> bytes:
    """Encode the result of `shrink` (less than twice as large) as JPEG with a longer side of at most `SIDE`."""
    scale = min(SIDE / max(gray.shape), 1)
    size = max(round(gray.shape[1] * scale), 1), max(round(gray.shape[0] * scale), 1)
    small = cv2.resize(gray, size, interpolation=cv2.INTER_LINEAR)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


class ThumbnailWriter:
    """Writer that appends thumbnails to a file and returns the place of each, `NAME:OFFSET:LENGTH`."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file: BinaryIO = path.open("ab")

    def add(self, picture: bytes) -> str:
        """Append one thumbnail."""
        place = f"{self._name}:{self._file.tell()}:{len(picture)}"
        self._file.write(picture)
        return place

    def flush(self) -> None:
        """Flush to the operating system, so that a kill loses nothing."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


class ThumbnailReader:
    """Reader of thumbnails by their place; files stay open within a `with`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO | None] = {}

    def __enter__(self) -> ThumbnailReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            if file is not None:
                file.close()

    def read(self, place: str) -> bytes:
        """Read one thumbnail; empty if its file is gone."""
        if not place:
            return b""
        name, offset, length = place.rsplit(":", 2)
        if name not in self._files:
            path = self._folder / name
            self._files[name] = path.open("rb") if path.is_file() else None
        file = self._files[name]
        if file is None:
            return b""
        file.seek(int(offset))
        return file.read(int(length))
