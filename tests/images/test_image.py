"""Files that promise more than they hold are refused by what they declare, before anything is allocated."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from dinocell.core.errors import ConfigError, DataError
from dinocell.images.read import open_lazily, read_image

SMALL = np.zeros((64, 64), np.uint8)
HUGE = 50_000


def tiff(path: Path, tags: dict[str, int], **keywords: object) -> Path:
    tifffile.imwrite(path, SMALL, metadata=None, **keywords)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)  # type: ignore[union-attr]
    return path


def described(path: Path, text: str) -> Path:
    tifffile.imwrite(path, SMALL, metadata=None, description=text.encode())
    return path


def picture(path: Path, at: Callable[[bytes], int], value: bytes) -> Path:
    cv2.imwrite(str(path), SMALL)
    data = bytearray(path.read_bytes())
    start = at(bytes(data))
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def many_planes(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((3, 64, 64), np.uint8), ome=True, metadata={"axes": "TYX"})
    with tifffile.TiffFile(path) as file:
        text = str(file.ome_metadata).replace('SizeT="3"', 'SizeT="99999999"')
    return described(path, text)


def npy(path: Path) -> Path:
    np.save(path, SMALL)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(64, 64), }" + b" " * 12, b"(6400000, 6400000), }  "))
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    "strips": lambda d: tiff(
        d / "a.tif", {"ImageLength": HUGE, "ImageWidth": HUGE}, compression="zlib", rowsperstrip=16
    ),
    "raw": lambda d: tiff(d / "a.tif", {"ImageLength": 10**6, "ImageWidth": 10**6}),
    "tiles": lambda d: tiff(d / "a.tif", {"TileWidth": 2**15, "TileLength": 2**15}, compression="zlib", tile=(16, 16)),
    "shape": lambda d: described(d / "a.tif", '{"shape": [100000000, 64, 64]}'),
    "planes": lambda d: many_planes(d / "a.ome.tif"),
    "jpeg": lambda d: picture(d / "a.jpg", lambda b: b.index(b"\xff\xc0") + 5, b"\xff\xff\xff\xff"),
    "bmp": lambda d: picture(d / "a.bmp", lambda _: 18, struct.pack("<ii", HUGE, HUGE)),
    "npy": lambda d: npy(d / "a.npy"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_without_the_memory_they_ask_for(kind: str, tmp_path: Path) -> None:
    path = BOMBS[kind](tmp_path)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=re.escape(path.name)) as caught:
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_not_opened_plane_by_plane_either(kind: str, tmp_path: Path) -> None:
    path = BOMBS[kind](tmp_path)
    with pytest.raises(DataError, match=re.escape(path.name)):
        assert open_lazily(path) is None
        read_image(path)


def test_the_refusal_says_what_where_how_much_and_what_to_do(tmp_path: Path) -> None:
    path = BOMBS["strips"](tmp_path)
    with pytest.raises(DataError) as caught:
        read_image(path)
    for part in (str(path), "2.3 GiB", "(50000, 50000)", "1/5000", "DINOCELL_MAX_GIB"):
        assert part in str(caught.value)


def test_a_blank_image_is_no_bomb(tmp_path: Path) -> None:
    blank = np.zeros((8_200, 8_200), np.uint8)  # deflate reaches its best, 1 : 1,000
    tifffile.imwrite(tmp_path / "a.tif", blank, compression="zlib", tile=(1024, 1024))
    cv2.imwrite(str(tmp_path / "a.png"), blank)
    for name in ("a.tif", "a.png"):
        assert blank.nbytes > 500 * (tmp_path / name).stat().st_size
        assert read_image(tmp_path / name).array.shape == blank.shape


def test_the_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((1000, 1000), np.uint16))
    monkeypatch.setenv("DINOCELL_MAX_GIB", "0.001")
    with pytest.raises(DataError, match=r"limit of 0\.0 GiB; .*DINOCELL_MAX_GIB"):
        read_image(tmp_path / "a.tif")
    monkeypatch.setenv("DINOCELL_MAX_GIB", "1")
    assert read_image(tmp_path / "a.tif").array.nbytes == 2_000_000
    monkeypatch.setenv("DINOCELL_MAX_GIB", "much")
    with pytest.raises(ConfigError, match="DINOCELL_MAX_GIB: a number of GiB above 0, got 'much'"):
        read_image(tmp_path / "a.tif")


def test_a_limit_set_by_hand_lets_sparse_files_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((10_000, 8_000), np.uint8), compression="zstd", rowsperstrip=10_000)
    if (tmp_path / "a.tif").stat().st_size * 5000 > 80_000_000:
        pytest.skip("zstd compresses less here")
    with pytest.raises(DataError, match="1/5000"):
        read_image(tmp_path / "a.tif")
    monkeypatch.setenv("DINOCELL_MAX_GIB", "1")
    assert read_image(tmp_path / "a.tif").array.shape == (10_000, 8_000)


V2 = {"zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "|u1"}
V3 = {
    "node_type": "array",
    "shape": [64, 64],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 64]}},
}


@pytest.mark.parametrize(
    ("name", "header", "refusal"),
    [
        (".zarray", V2 | {"shape": [10**6, 10**6]}, r"decodes to 931\.3 GiB"),
        (".zarray", V2 | {"chunks": [10**6, 10**6]}, r"decodes to 931\.3 GiB"),
        (".zarray", V2 | {"shape": [8000, 8000], "chunks": [1, 1]}, "64000000 chunks, more than 10000000"),
        ("zarr.json", V3 | {"shape": [10**6, 10**6]}, r"decodes to 931\.3 GiB"),
        ("zarr.json", V3 | {"shape": [10**5, 10**4]}, "1/5000"),
    ],
)
def test_zarr_arrays_are_refused_by_their_headers(
    name: str, header: dict[str, object], refusal: str, tmp_path: Path
) -> None:
    (tmp_path / "a.ome.zarr" / "0").mkdir(parents=True)
    (tmp_path / "a.ome.zarr" / "0" / name).write_text(json.dumps(header))
    with pytest.raises(DataError, match=rf"a\.ome\.zarr.*{refusal}"):
        read_image(tmp_path / "a.ome.zarr")


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("colour", [False, True])
def test_a_jpeg_whose_bytes_cannot_hold_its_blocks_is_refused_and_a_blank_one_is_read(
    tmp_path: Path, progressive: int, colour: bool
) -> None:
    path = tmp_path / "a.jpg"
    blank = np.full((2_000, 1_600, 3) if colour else (2_000, 1_600), 90, np.uint8)
    cv2.imwrite(str(path), blank, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    assert read_image(path).array.shape == blank.shape
    data = path.read_bytes()
    height = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    path.write_bytes(data[:height] + (60_000).to_bytes(2) + data[height + 2 :])  # 30 times as many blocks
    with pytest.raises(DataError, match=f"damaged JPEG, {len(data)} bytes are too few for 60000 x 1600 px"):
        read_image(path)
