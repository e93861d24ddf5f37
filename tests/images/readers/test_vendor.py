"""Vendor formats: read as their own libraries read them. Those are an extra; where missing, tests are skipped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinocell.core.errors import DataError
from dinocell.images.image import ImageFile
from dinocell.images.read import read_image, read_series

RNG = np.random.default_rng(1)


def test_czi_written_by_zeiss_own_library(tmp_path: Path) -> None:
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw.czi")
    planes = {(c, z): RNG.integers(0, 4000, (60, 80)).astype(np.uint16) for c in range(2) for z in range(3)}
    with czi.create_czi(str(tmp_path / "a.czi")) as document:
        for (c, z), plane in planes.items():
            document.write(data=plane[..., None], plane={"C": c, "Z": z, "T": 0}, scene=0)
        document.write_metadata("a", channel_names={0: "DAPI", 1: "Phase"}, scale_x=0.325e-6, scale_y=0.325e-6)
    image = read_image(tmp_path / "a.czi")
    assert (image.axes, image.channel_names, image.axes_source) == ("CZYX", ("DAPI", "Phase"), "metadata")
    assert image.pixel_size == pytest.approx(0.325)
    for (c, z), plane in planes.items():
        np.testing.assert_array_equal(image.array[c, z], plane)


class Lif:
    """Stands in for liffile.LifFile: images with dims, shape, dtype, coords and asarray()."""

    def __init__(self, *images: tuple[tuple[str, ...], np.ndarray]) -> None:
        self.images = [
            SimpleNamespace(
                dims=dims,
                shape=array.shape,
                dtype=array.dtype,
                coords={"X": np.arange(array.shape[-1]) * 2e-7},
                asarray=lambda array=array: array,
            )
            for dims, array in images
        ]

    def __enter__(self) -> Lif:
        return self

    def __exit__(self, *_: object) -> None:
        return


def read_lif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *images: tuple[tuple[str, ...], np.ndarray]
) -> list[ImageFile]:
    monkeypatch.setitem(sys.modules, "liffile", SimpleNamespace(__name__="liffile", LifFile=lambda _: Lif(*images)))
    (tmp_path / "a.lif").write_bytes(b"")
    return list(read_series(tmp_path / "a.lif"))


def test_every_lif_image_with_y_and_x_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = RNG.integers(0, 200, (5, 1, 20, 30)).astype(np.uint8)
    stack = RNG.integers(0, 200, (2, 3, 20, 30)).astype(np.uint8)
    first, second = read_lif(
        tmp_path,
        monkeypatch,
        (("λ", "T", "Y", "X"), sweep),
        (("C", "Z", "X"), stack[:, 0]),
        (("C", "Z", "Y", "X"), stack),
    )
    assert (first.axes, second.axes, first.series, second.series) == ("CYX", "CZYX", "s0", "s1")
    assert first.pixel_size == pytest.approx(0.2)
    np.testing.assert_array_equal(first.array, sweep[:, 0])
    np.testing.assert_array_equal(second.array, stack)


def test_lif_without_planes_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = np.zeros((4, 50), np.uint8)
    with pytest.raises(DataError, match="none of its images has the axes Y and X"):
        read_lif(tmp_path, monkeypatch, (("Z", "X"), line))
    cube = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(DataError, match="distinguished"):
        read_lif(tmp_path, monkeypatch, (("λ", "C", "Y", "X"), cube))
