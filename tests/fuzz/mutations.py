"""Ways in which a file can be damaged or forged: bytes in, bytes out, decided by a random generator alone."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Random = np.random.Generator
Mutation = Callable[[bytearray, Random, bytes], bytearray]

EXTREMES = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NUMBERS = ("0", "1", "-1", "3", "17", "65536", "4294967296", "99999999999999999999", "1e999", "nan", "2.5", "")
SUFFIXES = (".tif", ".png", ".jpg", ".bmp", ".npy", ".tiff", ".ome.tif", ".lsm", ".stk", ".jpeg", ".TIF")
HEAD = 512
SAFE_RUN = 4096


def mutate(data: bytes, random: Random, other: bytes) -> bytes:
    """One to three mutations; `other` is a file to splice from."""
    result = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        if not result:
            break
        result = MUTATIONS[int(random.integers(len(MUTATIONS)))](result, random, other)
    return bytes(result)


def _place(data: bytearray, random: Random) -> int:
    """A position: half of the time in the first bytes, a quarter in the last, else anywhere."""
    kind = random.random()
    if kind < 0.5:
        return int(random.integers(min(len(data), HEAD)))
    if kind < 0.75:
        return int(random.integers(max(len(data) - HEAD, 0), len(data)))
    return int(random.integers(len(data)))


def truncate(data: bytearray, random: Random, other: bytes) -> bytearray:
    del other
    return data[: int(random.integers(len(data)))]


def flip(data: bytearray, random: Random, other: bytes) -> bytearray:
    del other
    for _ in range(int(random.integers(1, 9))):
        data[_place(data, random)] ^= 1 << int(random.integers(8))
    return data


def overwrite(data: bytearray, random: Random, other: bytes) -> bytearray:
    """A number of 1, 2, 4 or 8 bytes becomes an extreme one."""
    del other
    width = int(random.choice((1, 2, 4, 8)))
    value = int(random.choice(EXTREMES)) & (256**width - 1)
    at = _place(data, random) & ~1
    data[at : at + width] = value.to_bytes(width, "little" if random.random() < 0.5 else "big")
    return data


def zeros(data: bytearray, random: Random, other: bytes) -> bytearray:
    del other
    at, length = _place(data, random), int(random.integers(1, SAFE_RUN))
    data[at : at + length] = bytes(len(data[at : at + length]))
    return data


def delete(data: bytearray, random: Random, other: bytes) -> bytearray:
    del other
    at = _place(data, random)
    del data[at : at + int(random.integers(1, SAFE_RUN))]
    return data


def splice(data: bytearray, random: Random, other: bytes) -> bytearray:
    """A run of another file, in place of as many bytes or between two."""
    if not other:
        return data
    start, at = int(random.integers(len(other))), _place(data, random)
    run = other[start : start + int(random.integers(1, SAFE_RUN))]
    data[at : at + (len(run) if random.random() < 0.5 else 0)] = run
    return data


def repeat(data: bytearray, random: Random, other: bytes) -> bytearray:
    del other
    at = _place(data, random)
    run = data[at : at + int(random.integers(1, SAFE_RUN))]
    data[at:at] = run * int(random.integers(1, 4))
    return data


def written_number(data: bytearray, random: Random, other: bytes) -> bytearray:
    """A number in text (OME-XML, JSON, NPY headers) becomes another."""
    del other
    found = list(re.finditer(rb"(?<![\w.])\d{1,9}(?![\w.])", bytes(data[: 64 * HEAD])))
    if not found:
        return data
    one = found[int(random.integers(len(found)))]
    data[one.start() : one.end()] = str(random.choice(NUMBERS)).encode()
    return data


def tiff_tag(data: bytearray, random: Random, other: bytes) -> bytearray:
    """Type, count or value of a tag of a classic TIFF's first directory becomes an extreme one."""
    del other
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8 or struct.unpack_from(order + "H", data, 2)[0] != 42:
        return data
    (directory,) = struct.unpack_from(order + "I", data, 4)
    if directory + 2 > len(data):
        return data
    (tags,) = struct.unpack_from(order + "H", data, directory)
    entry = directory + 2 + 12 * int(random.integers(max(tags, 1)))
    if entry + 12 > len(data):
        return data
    part, code, limit = ((0, "H", 2**16), (2, "H", 2**16), (4, "I", 2**32), (8, "I", 2**32))[int(random.integers(4))]
    value = int(random.choice(EXTREMES)) if random.random() < 0.7 else int(random.integers(limit))
    struct.pack_into(order + code, data, entry + part, value % limit)
    return data


def png_header(data: bytearray, random: Random, other: bytes) -> bytearray:
    """Width, height, depth or colour type of a PNG, with the right checksum."""
    del other
    if data[:4] != b"\x89PNG" or len(data) < 33:
        return data
    if random.random() < 0.6:
        at = int(random.choice((16, 20)))
        struct.pack_into(">I", data, at, int(random.choice(EXTREMES)) & 0x7FFFFFFF)
    else:
        data[int(random.integers(24, 29))] = int(random.integers(20))
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return data


def jpeg_frame(data: bytearray, random: Random, other: bytes) -> bytearray:
    """Height, width, or components of a JPEG's frame header."""
    del other
    found = re.search(rb"\xff[\xc0-\xc2]\x00[\x08-\x30]\x08", bytes(data[: 64 * HEAD]))
    if found is None or found.end() + 8 > len(data):
        return data
    at = found.end() + int(random.integers(7))
    data[at : at + 2] = int(random.choice((0, 1, 255, 256, 4096, 65535))).to_bytes(2)
    return data


MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip,
    flip,
    overwrite,
    overwrite,
    zeros,
    delete,
    splice,
    repeat,
    written_number,
    tiff_tag,
    tiff_tag,
    png_header,
    jpeg_frame,
)


def mutate_folder(folder: Path, random: Random, other: bytes) -> None:
    """Damage one file of a folder (OME-Zarr), metadata more often than chunks, or delete it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [path for path in files if path.name.endswith(".json") or path.name.startswith(".z")]
    pool = named if named and random.random() < 0.7 else files
    chosen = pool[int(random.integers(len(pool)))]
    if random.random() < 0.1:
        chosen.unlink()
    else:
        kinds = (written_number, written_number, flip, truncate) if chosen in named else MUTATIONS
        data = bytearray(chosen.read_bytes())
        if data:
            chosen.write_bytes(kinds[int(random.integers(len(kinds)))](data, random, other))
