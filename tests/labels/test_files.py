"""Label images survive their files: values, type, pixel size, at any size of image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from dinocell.core.errors import DataError
from dinocell.images.read import read_image
from dinocell.labels import files
from dinocell.labels.files import read_labels, write_labels


@pytest.mark.parametrize(("count", "dtype"), [(300, "uint16"), (70_000, "uint32")])
@pytest.mark.parametrize("streamed", [False, True])
def test_labels_survive_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, dtype: str, streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(files, "STREAM_BYTES", 0)
        monkeypatch.setattr(files, "TILE", 128)
    labels = np.zeros((300, 301), np.int32)
    labels.ravel()[:count] = np.arange(1, count + 1)
    write_labels(tmp_path / "new" / "a.tif", labels, pixel_size=0.325)
    with tifffile.TiffFile(tmp_path / "new" / "a.tif") as file:
        page = file.pages.first
        assert file.is_ome and page.dtype == dtype and page.is_tiled == streamed
        dots, unit = page.tags["XResolution"].value, page.tags["ResolutionUnit"].value
        assert unit == 3 and 1e4 / (dots[0] / dots[1]) == pytest.approx(0.325, rel=1e-4), "ImageJ's µm per pixel"
    np.testing.assert_array_equal(read_labels(tmp_path / "new" / "a.tif"), labels)
    assert read_image(tmp_path / "new" / "a.tif").pixel_size == pytest.approx(0.325)


def test_memory_mapped_labels_are_written_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(200 * 150, dtype=np.uint32).reshape(200, 150)
    mapped = np.memmap(tmp_path / "labels", dtype=np.uint32, mode="w+", shape=labels.shape)
    mapped[:] = labels
    monkeypatch.setattr(files, "STREAM_BYTES", 1000)
    write_labels(tmp_path / "a.tif", mapped)
    write_labels(tmp_path / "b.tif", labels)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), labels)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes(), "equal labels, equal files"
    write_labels(tmp_path / "b.tif", labels + 1)
    assert (tmp_path / "a.tif").read_bytes() != (tmp_path / "b.tif").read_bytes()


def test_no_half_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labels(tmp_path / "a.tif", np.eye(5, dtype=bool))

    def full(file: Path, *_: object, **__: object) -> None:
        Path(file).write_bytes(b"II*")
        raise OSError("No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OSError, match="No space"):
        write_labels(tmp_path / "a.tif", np.ones((5, 5), int))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), np.eye(5))


def test_images_are_not_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "colour.png"), random.integers(0, 200, (20, 30, 3)).astype(np.uint8))
    tifffile.imwrite(tmp_path / "float.tif", random.random((20, 30)).astype(np.float32))
    tifffile.imwrite(tmp_path / "negative.tif", np.full((20, 30), -1, np.int16))
    for name, reason in (("colour.png", "colour"), ("float.tif", "fractional"), ("negative.tif", "must be within")):
        with pytest.raises(DataError, match=reason):
            read_labels(tmp_path / name)
