"""Reading: every layout a microscope writes comes back with its values, its axes and where they are known from."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from dinocell.core.errors import DataError
from dinocell.images.gray.channels import planes, to_gray
from dinocell.images.image import ImageFile
from dinocell.images.read import read_image, read_series

RNG = np.random.default_rng(0)


def picture(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_rgb_keeps_channel_order(tmp_path: Path, suffix: str) -> None:
    rgb = picture(30, 40, 3)
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, rgb, photometric="rgb")
    else:
        cv2.imwrite(str(path), rgb[..., ::-1])
    image = read_image(path)
    assert image.axes == "YXS"
    np.testing.assert_array_equal(image.array, rgb)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_keeps_dtype_and_values(tmp_path: Path, dtype: str) -> None:
    gray = picture(31, 17, dtype=dtype) * (255 if dtype == "uint16" else 1)
    cv2.imwrite(str(tmp_path / "a.png"), gray)
    image = read_image(tmp_path / "a.png")
    assert (image.axes, image.array.dtype) == ("YX", gray.dtype)
    np.testing.assert_array_equal(image.array, gray)


@pytest.mark.parametrize(
    ("shape", "axes", "rule"),
    [
        ((20, 30), "YX", "two axes"),
        ((20, 30, 3), "YXS", "last axis of 3"),
        ((20, 30, 2), "YXC", "last axis of 2"),
        ((3, 20, 30), "CYX", "axis of 3 is C"),
        ((7, 20, 30), "TYX", "axis of 7 is T"),
        ((7, 2, 20, 30), "TCYX", "axis of 7 is T, unnamed axis of 2 is C"),
        ((7, 9, 20, 30), "TZYX", "axis of 9 is Z"),
        ((7, 20, 30, 3), "TYXS", "last axis of 3"),
    ],
)
def test_npy_axes_follow_the_stated_rules(tmp_path: Path, shape: tuple[int, ...], axes: str, rule: str) -> None:
    np.save(tmp_path / "a.npy", picture(*shape))
    image = read_image(tmp_path / "a.npy")
    assert image.axes == axes
    assert rule in image.axes_source


@pytest.mark.parametrize("keywords", [{"ome": True}, {"imagej": True}, {"bigtiff": True}])
@pytest.mark.parametrize("axes", ["CYX", "ZYX", "TYX", "TZCYX"])
def test_tiff_axes_come_from_metadata(tmp_path: Path, keywords: dict[str, bool], axes: str) -> None:
    sizes = {"T": 2, "Z": 3, "C": 2, "Y": 20, "X": 30}
    stack = picture(*(sizes[letter] for letter in axes), dtype="uint16")
    path = tmp_path / ("a.ome.tif" if "ome" in keywords else "a.tif")
    tifffile.imwrite(path, stack, metadata={"axes": axes}, photometric="minisblack", **keywords)
    image = read_image(path)
    assert (image.axes, image.axes_source) == (axes, "metadata")
    np.testing.assert_array_equal(image.array, stack)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "jpeg2000"])
def test_compressed_tiff(tmp_path: Path, compression: str) -> None:
    stack = picture(3, 40, 30, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", stack, compression=compression, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, stack)


def test_plain_pages_without_names_are_channels_or_time(tmp_path: Path) -> None:
    for count, axes in ((3, "CYX"), (6, "TYX")):
        path = tmp_path / f"{count}.tif"
        with tifffile.TiffWriter(path) as writer:
            for page in picture(count, 20, 30):
                writer.write(page, metadata=None, contiguous=False)
        assert read_image(path).axes == axes


def test_unnamed_last_axis_of_two_is_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(40, 50, 2), photometric="minisblack")
    image = read_image(tmp_path / "a.tif")
    assert (image.array.shape, image.axes) == ((40, 50, 2), "YXC")


def test_given_axes_win_and_misfits_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture(3, 20, 30))
    image = read_image(tmp_path / "a.npy", axes="ZYX")
    assert (image.axes, image.axes_source) == ("ZYX", "given")
    with pytest.raises(DataError, match="names 4 axes, the array has 3"):
        read_image(tmp_path / "a.npy", axes="TZYX")
    with pytest.raises(DataError, match="at most once"):
        read_image(tmp_path / "a.npy", axes="QYX")


def test_every_series_of_a_file_is_read(tmp_path: Path) -> None:
    fields = [picture(20, 30), picture(20, 30) + 1]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for field in fields:
            writer.write(field)
        writer.write(picture(4, 5))  # a thumbnail
    read = list(read_series(tmp_path / "a.ome.tif"))
    assert [image.series for image in read] == ["s0", "s1"]
    for image, field in zip(read, fields, strict=True):
        np.testing.assert_array_equal(image.array, field)


def test_every_nth_frame(tmp_path: Path) -> None:
    movie = picture(7, 20, 30)
    tifffile.imwrite(tmp_path / "a.tif", movie, imagej=True, metadata={"axes": "TYX"})
    np.save(tmp_path / "a.npy", movie)
    for name in ("a.tif", "a.npy"):
        image = next(read_series(tmp_path / name, t_step=3))
        np.testing.assert_array_equal(image.array, movie[::3])
        assert [plane for plane, _ in planes(image)] == ["t000_gray", "t003_gray", "t006_gray"]


def test_pixel_size_only_from_calibrated_files(tmp_path: Path) -> None:
    plane = picture(20, 30)
    tifffile.imwrite(tmp_path / "ij.tif", plane, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "print.tif", plane, resolution=(72, 72), resolutionunit="INCH")
    assert read_image(tmp_path / "ij.tif").pixel_size == pytest.approx(0.25)
    for unit, size in (("nanometer", 0.25e-3), ("microns", 0.25), ("mm", 250.0), ("inch", None)):
        tifffile.imwrite(tmp_path / "unit.tif", picture(8, 8), imagej=True, resolution=(4, 4), metadata={"unit": unit})
        assert read_image(tmp_path / "unit.tif").pixel_size == (size and pytest.approx(size))
    assert read_image(tmp_path / "print.tif").pixel_size is None


def test_palette_and_min_is_white_are_shown_as_photographed(tmp_path: Path) -> None:
    indices = picture(20, 30) // 50
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colours, metadata=None)
    image = read_image(tmp_path / "palette.tif")
    assert image.axes == "YXS"
    np.testing.assert_array_equal(image.array, (colours >> 8).T[indices])
    tifffile.imwrite(tmp_path / "white.tif", indices, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif").array, 255 - indices)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.npy"])
@pytest.mark.parametrize("keep", [0, 20, 0.7])
def test_truncated_files_are_errors_not_half_pictures(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    noise = picture(64, 64)
    if path.suffix == ".tif":
        tifffile.imwrite(path, noise, compression="zlib")
    elif path.suffix == ".npy":
        np.save(path, noise)
    else:
        cv2.imwrite(str(path), noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=name):
        read_image(path)


def test_decompression_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 200_000, 200_000, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(header + b"\0" * 8 + b"\0\0\0\0IEND\xaeB`\x82")
    with pytest.raises(DataError, match=r"GiB .*limit"):
        read_image(tmp_path / "bomb.png")
    np.save(tmp_path / "bomb.npy", picture(100, 1000))
    with pytest.raises(DataError, match="limit"):
        read_image(tmp_path / "bomb.npy", max_bytes=1000)


def test_unknown_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(DataError, match=r"unknown image type \.xyz"):
        read_image(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "b.png")


def test_vendor_formats_name_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE")
    try:
        import bioio  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"dinocell\[formats\]"):
            read_image(tmp_path / "a.czi")


def test_tifffile_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(20, 30), description='{"shape": [7, 7]}', metadata=None)
    read_image(path)
    assert not any(capfd.readouterr())
    assert not logging.getLogger("tifffile").isEnabledFor(logging.ERROR)


def test_planes_of_each_layout() -> None:
    def names(array: np.ndarray, axes: str, **keywords: str) -> list[str]:
        image = ImageFile(array=array, axes=axes, axes_source="given")
        return [name for name, _ in planes(image, **keywords)]  # type: ignore[arg-type]

    gray = picture(20, 30)
    assert names(gray, "YX") == ["gray"]
    assert names(np.stack([gray] * 3, -1), "YXS") == ["gray"]  # equal channels count once
    assert names(np.stack([gray] * 3 + [gray * 0 + 255], -1), "YXS") == ["gray"]  # alpha is no channel
    assert names(picture(20, 30, 3) // 4 + 200, "YXS") == ["luma"]  # bright: a stained picture
    assert names((picture(20, 30, 3) == 7).astype("uint8") * 200, "YXS") == ["c0", "c1", "c2", "combined"]
    assert names(picture(3, 20, 30), "CYX") == ["c0", "c1", "c2", "combined"]
    assert names(picture(20, 30, 2), "YXC") == ["c0", "c1", "combined"]
    assert names(picture(5, 20, 30), "ZYX") == ["gray"]
    assert names(picture(2, 2, 20, 30), "TCYX") == [f"t00{t}_{c}" for t in (0, 1) for c in ("c0", "c1", "combined")]


def test_depth_is_the_sharpest_plane_or_the_maximum() -> None:
    sharp = picture(40, 40).astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    stack = np.stack([blurred * 5, sharp, blurred])
    image = ImageFile(array=stack, axes="ZYX", axes_source="given")
    np.testing.assert_array_equal(next(planes(image))[1], sharp)
    np.testing.assert_array_equal(next(planes(image, z="max"))[1], stack.max(0))


def test_to_gray_does_not_depend_on_where_the_channels_are() -> None:
    channels = picture(2, 20, 30, dtype="uint16")
    first = to_gray(channels, "CYX")
    np.testing.assert_array_equal(first, to_gray(np.moveaxis(channels, 0, -1), "YXC"))
    assert first.shape == (20, 30)
    assert first.dtype == np.uint16


def test_combined_shows_every_channel_whatever_its_exposure() -> None:
    dim, bright = np.zeros((2, 50, 50), np.uint16)
    dim[10:20, 10:20] = 40
    bright[30:40, 30:40] = 60_000
    combined = to_gray(np.stack([dim, bright]), "CYX")
    assert combined[15, 15] == combined[35, 35] > 0
    assert combined[0, 0] == 0
