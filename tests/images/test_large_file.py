"""Planes loaded from large files are those of the file read whole, whatever its layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from dinocell.core.errors import DataError
from dinocell.images import large_file, mapped
from dinocell.images.axes import AXES
from dinocell.images.gray.bands import to_gray_large
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import open_lazily, read_image
from dinocell.images.readers import tiff_planes

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 60_000, (203, 151), dtype=np.uint16)
COLOUR = RANDOM.integers(0, 255, (203, 151, 3), dtype=np.uint8)
PLANAR = COLOUR.transpose(2, 0, 1)
STACK = RANDOM.integers(0, 60_000, (3, 2, 70, 91), dtype=np.uint16)
LAYOUTS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "contiguous": (GRAY, {}),
    "big endian": (GRAY, {"byteorder": ">"}),
    "big endian stack": (STACK, {"byteorder": ">", "metadata": {"axes": "TCYX"}}),
    "strips": (GRAY, {"compression": "zlib", "rowsperstrip": 17}),
    "one strip": (GRAY, {"compression": "lzw", "rowsperstrip": 203}),
    "tiles, predictor, BigTIFF": (GRAY, {"compression": "zlib", "predictor": True, "tile": (64, 48), "bigtiff": True}),
    "big endian tiles": (GRAY, {"compression": "zlib", "tile": (64, 48), "byteorder": ">"}),
    "float tiles": (GRAY.astype(np.float32), {"tile": (64, 48)}),
    "colour": (COLOUR, {"photometric": "rgb", "tile": (64, 48), "compression": "zlib"}),
    "colour by sample": (
        COLOUR.transpose(2, 0, 1),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 48)},
    ),
    "OME, channels": (STACK, {"ome": True, "metadata": {"axes": "TCYX"}, "compression": "zlib"}),
    "OME, channels first": (STACK, {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"}),
    "ImageJ": (STACK, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "plain pages": (STACK[:, 0], {"compression": "zlib"}),
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_file, "LAZY_BYTES", 4000)
    monkeypatch.setattr(mapped, "BAND_BYTES", 5000)
    monkeypatch.setattr(tiff_planes, "RELEASE_BYTES", 5000)


def check(file: Path) -> None:
    whole, opened = read_image(file), open_lazily(file)
    assert opened is not None, "not opened lazily"
    assert (opened.shape, opened.axes, opened.dtype) == (whole.shape, whole.axes, whole.array.dtype.newbyteorder("="))
    assert (opened.pixel_size, opened.channel_names) == (whole.pixel_size, whole.channel_names)
    array = whole.array.transpose([whole.axes.index(letter) for letter in AXES if letter in whole.axes])
    stacked = sum(letter in "TZ" for letter in whole.axes)
    for index in np.ndindex(array.shape[:stacked]):
        plane = opened.plane(index, file.parent)
        np.testing.assert_array_equal(plane, array[index])
        assert isinstance(plane, np.memmap), "not in memory"
        gray = to_gray_large(plane, opened.plane_axes, file.parent)
        expected = to_gray(array[index], opened.plane_axes)
        assert gray.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(gray, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_planes_equal_the_whole_file(layout: str, tmp_path: Path) -> None:
    array, options = LAYOUTS[layout]
    tifffile.imwrite(tmp_path / "image.tif", array, **options)
    check(tmp_path / "image.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"], "scratch files have no name"


@pytest.mark.parametrize("kind", ["dark", "bright", "gray", "alpha", "uint16", "float"])
def test_large_colour_pictures_become_the_same_gray(kind: str, tmp_path: Path) -> None:
    picture: np.ndarray = RANDOM.gamma(1.0, 12, (150, 130, 3)).clip(0, 255).astype(np.uint8)
    match kind:
        case "bright":
            picture = 255 - picture
        case "gray":
            picture = np.repeat(picture[..., :1], 3, axis=2)
        case "alpha":
            picture = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        case "uint16":
            picture = 65_535 - 257 * picture.astype(np.uint16)
        case "float":
            picture = (1 - picture / 255).astype(np.float32)
    expected = to_gray(picture, "YXS")
    for array in (picture, mapped.scratch_array(picture.shape, picture.dtype, tmp_path)):
        array[:] = picture
        found = to_gray_large(array, "YXS", tmp_path)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_npy_stays_in_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", STACK[:, 0])
    check(tmp_path / "stack.npy")


def test_given_axes_rule(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", STACK[:, 0], compression="zlib")
    opened = open_lazily(tmp_path / "stack.tif", axes="CYX")
    assert opened is not None and (opened.axes, opened.axes_source, opened.plane_axes) == ("CYX", "given", "CYX")
    np.testing.assert_array_equal(opened.plane(()), STACK[:, 0])
    with pytest.raises(DataError, match="names 2 axes"):
        open_lazily(tmp_path / "stack.tif", axes="YX")


def test_what_can_only_be_read_whole_is_left_to_the_reader(tmp_path: Path) -> None:
    indices = GRAY.astype(np.uint8)
    colormap = RANDOM.integers(0, 65_535, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colormap)
    tifffile.imwrite(tmp_path / "white.tif", indices, photometric="miniswhite", compression="zlib")
    tifffile.imwrite(tmp_path / "small.tif", indices[:20, :20])
    for name in ("palette", "white", "small"):
        assert open_lazily(tmp_path / f"{name}.tif") is None
    (tmp_path / "image.png").write_bytes(b"")
    assert open_lazily(tmp_path / "image.png") is None


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, GRAY, compression="zlib", rowsperstrip=17)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    opened = open_lazily(file)
    assert opened is not None
    with pytest.raises(DataError, match=r"image\.tif: cannot be decoded"):
        opened.plane(())
    file.write_bytes(b"II*\0 no image")
    with pytest.raises(DataError, match=r"image\.tif: broken TIFF"):
        open_lazily(file)


def test_bombs_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "image.tif", GRAY, compression="zlib", rowsperstrip=203)
    monkeypatch.setattr(large_file, "MAX_PLANE_BYTES", 50_000)
    with pytest.raises(DataError, match=r"decodes to .* more than the limit"):
        open_lazily(tmp_path / "image.tif")
    monkeypatch.setenv("DINOCELL_MAX_GIB", "0.00001")
    with pytest.raises(DataError, match=r"decodes to .* more than the limit"):
        open_lazily(tmp_path / "image.tif")


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_planes_equal_the_whole_array(version: int, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    file = tmp_path / "image.ome.zarr"
    group = zarr.open_group(str(file), mode="w", zarr_format=version)
    data = STACK[:, :, None]
    group.create_array("0", shape=data.shape, chunks=(1, 1, 1, 32, 32), dtype=data.dtype)[:] = data
    axes = [{"name": n, "type": t} for n, t in zip("tczyx", ("time", "channel", *["space"] * 3), strict=True)]
    for axis in axes[2:]:
        axis["unit"] = "nanometer"
    scale = [{"type": "scale", "scale": [1, 1, 1, 325.0, 325.0]}]
    image = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
    image["omero"] = {"channels": [{"label": "DAPI"}, {"label": "phase"}]}  # type: ignore[assignment]
    group.attrs.update({"ome": image} if version == 3 else image)
    found = read_image(file)
    assert (found.axes, found.pixel_size, found.channel_names) == ("TCYX", 0.325, ("DAPI", "phase"))
    np.testing.assert_array_equal(found.array, STACK)
    check(file)


def test_a_folder_that_is_no_ome_zarr_is_named(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match=r"empty\.zarr: no OME-Zarr image"):
        read_image(tmp_path / "empty.zarr")


@pytest.mark.parametrize("z", ["best", "max", "mean", 1])
def test_a_depth_of_a_stack_loaded_lazily_is_that_of_the_whole(z: int | str, tmp_path: Path) -> None:
    from dinocell.images.depth import choose_depth
    from dinocell.images.planes import iter_planes, loaded

    tifffile.imwrite(tmp_path / "stack.tif", STACK, ome=True, metadata={"axes": "TZYX"}, compression="zlib")
    opened = open_lazily(tmp_path / "stack.tif")
    assert opened is not None
    for lazily, whole in zip(
        iter_planes(choose_depth(opened, z)),
        iter_planes(choose_depth(read_image(tmp_path / "stack.tif"), z)),
        strict=True,
    ):
        assert lazily.name == whole.name
        np.testing.assert_array_equal(loaded(lazily).gray, loaded(whole).gray)
