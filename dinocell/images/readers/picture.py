"""PNG, JPEG and BMP, checked for completeness before they are decoded."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from dinocell.core.errors import DataError
from dinocell.images.image import ImageFile, reading, refuse_bomb


def read_picture(file: Path, max_bytes: int | None) -> ImageFile:
    data = np.fromfile(file, dtype=np.uint8)
    shape, itemsize = picture_header(data[: 2**20].tobytes(), data[-4096:].tobytes(), file)
    refuse_bomb(shape, itemsize, max_bytes, file)
    with reading(file, "cannot be decoded"):
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError(f"{file}: cannot be decoded as {file.suffix[1:].upper()}")
    if array.ndim == 2:
        return ImageFile(array=array, axes="YX", axes_source="metadata")
    if array.shape[2] == 1:
        return ImageFile(array=array[..., 0], axes="YX", axes_source="metadata")
    upright = cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return ImageFile(array=cv2.cvtColor(array, upright), axes="YXS", axes_source="metadata")


def picture_header(head: bytes, tail: bytes, where: Path) -> tuple[tuple[int, int, int], int]:
    """Height, width and samples, and bytes per sample, that a PNG, JPEG or BMP decodes to, read without decoding it.

    Raises:
        DataError: not such a file, or its end is missing (decoders silently pad truncated images).
    """
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 33:
        if b"IEND" not in tail:
            raise DataError(f"{where}: truncated PNG, its end is missing")
        samples = 1 if head[25] == 0 else 4
        return (int.from_bytes(head[20:24]), int.from_bytes(head[16:20]), samples), max(head[24] // 8, 1)
    if head[:2] == b"\xff\xd8":
        if b"\xff\xd9" not in tail:
            raise DataError(f"{where}: truncated JPEG, its end is missing")
        return _jpeg_shape(head, where), 1
    if head[:2] == b"BM" and len(head) >= 26:
        size = int.from_bytes(head[2:6], "little")
        height = abs(int.from_bytes(head[22:26], "little", signed=True))
        width = abs(int.from_bytes(head[18:22], "little", signed=True))
        if size > where.stat().st_size:
            raise DataError(f"{where}: truncated BMP, {where.stat().st_size} of {size} bytes")
        return (height, width, 4), 1
    raise DataError(f"{where}: not a PNG, JPEG or BMP file")


def _jpeg_shape(head: bytes, where: Path) -> tuple[int, int, int]:
    position = 2
    while position + 9 < len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (int.from_bytes(head[position + k : position + k + 2]) for k in (5, 7))
            samples = head[position + 9]
            if marker <= 0xC2 and samples <= 4:
                _refuse_short_jpeg(height, width, head[position + 11 : position + 10 + 3 * samples : 3], where)
            return height, width, samples
        position += 2 + int.from_bytes(head[position + 2 : position + 4])
    raise DataError(f"{where}: JPEG without a frame header")


def _refuse_short_jpeg(height: int, width: int, sampling: bytes, where: Path) -> None:
    """Refuse a Huffman-coded JPEG too short for its size; decoders would fill it up with gray.

    Each 8 × 8 block of each component takes its own code word, which has at least one bit. Four bits of
    `sampling`, a byte per component, are its density across, four that down.
    """
    density = [(max(1, one >> 4), max(1, one & 15)) for one in sampling]
    across, down = (8 * max(side, default=1) for side in zip(*density, strict=True)) if density else (8, 8)
    blocks = sum(math.ceil(width * h / across) * math.ceil(height * v / down) for h, v in density)
    size = where.stat().st_size
    if blocks > 8 * size:
        raise DataError(f"{where}: damaged JPEG, {size} bytes are too few for {height} x {width} px")
