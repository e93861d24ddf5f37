"""Every output format, read back with the library that its users read it with."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from shapely.geometry import shape

from dinocell.core.errors import ConfigError, DataError
from dinocell.images.listing import list_images
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.report.colours import flow_colours
from dinocell.segmentation import SegmentationResult
from dinocell.segmentation.outputs.polygons import cells_to_geojson, imagej_rois
from dinocell.segmentation.outputs.save import FORMATS, check_formats, save_result

roifile = pytest.importorskip("roifile")
Make = Callable[..., Any]
HERE = tuple(name for name in FORMATS if name not in ("embeddings", "zarr"))  # those are read in tests of their own


@pytest.fixture
def result(make_oracle: Make, make_disks: Make) -> SegmentationResult:
    image, segmenter = make_oracle(make_disks((90, 131)))
    found: SegmentationResult = segmenter.segment(image, pixel_size=0.65)
    return found


@pytest.fixture
def written(result: SegmentationResult, tmp_path: Path) -> dict[str, Path]:
    paths = save_result(result, tmp_path / "out", "field", check_formats(HERE), source="/data/field.tif")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}, "no temporary files"
    return dict(zip(HERE, paths, strict=True))


def test_labels_have_their_values_dtype_and_pixel_size(written: dict[str, Path], result: SegmentationResult) -> None:
    with tifffile.TiffFile(written["labels"]) as file:
        page = file.pages[0]
        assert file.is_ome and page.dtype == np.uint16
        np.testing.assert_array_equal(file.asarray(), result.labels)
        dots, unit = page.tags["XResolution"].value, page.tags["ResolutionUnit"].value
        assert unit == 3 and 1e4 / (dots[0] / dots[1]) == pytest.approx(0.65, rel=1e-4), "ImageJ's µm per pixel"
    assert read_image(written["labels"]).pixel_size == pytest.approx(0.65)
    np.testing.assert_array_equal(read_labels(written["labels"]), result.labels)
    np.testing.assert_array_equal(cv2.imread(str(written["labels"]), cv2.IMREAD_UNCHANGED), result.labels)


def test_csv_is_the_table(written: dict[str, Path], result: SegmentationResult) -> None:
    table = pd.read_csv(written["csv"])
    pd.testing.assert_frame_equal(table, result.table(), check_dtype=False, rtol=1e-5)
    assert table["area_um2"].sum() == pytest.approx((result.labels > 0).sum() * 0.65**2, rel=1e-5)


def test_geojson_polygons_are_the_cells(written: dict[str, Path], result: SegmentationResult) -> None:
    collection = json.loads(written["geojson"].read_text())
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == result.count
    assert len({feature["id"] for feature in collection["features"]}) == result.count
    for feature in collection["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid and feature["properties"]["objectType"] == "detection"
        cell = result.labels == int(feature["properties"]["name"])
        assert polygon.area == cell.sum() == feature["properties"]["measurements"]["area_px"]
        rows, columns = np.nonzero(cell)
        assert polygon.bounds == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert all(isinstance(value, float) for value in feature["properties"]["measurements"].values())


def test_geojson_leaves_out_measures_that_are_not_numbers(make_oracle: Make, make_disks: Make) -> None:
    image, segmenter = make_oracle(make_disks((64, 64)))
    found = segmenter.segment(image)
    text = json.dumps(cells_to_geojson(found.labels, found.table()), allow_nan=False)
    assert "area_px" in text and "area_um2" not in text


def test_rois_are_the_cells_in_imagej(written: dict[str, Path], result: SegmentationResult) -> None:
    rois = roifile.roiread(written["rois"])
    assert [int(roi.name) for roi in rois] == list(range(1, result.count + 1))
    for roi in rois:
        # ImageJ's traced ROIs run along pixel corners: filling the polygon gives the cell's pixels.
        corners = roi.integer_coordinates + np.array([roi.left, roi.top])
        mask = np.zeros(result.labels.shape, np.uint8)
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
        inside = _contains(corners, columns.ravel() + 0.5, rows.ravel() + 0.5).reshape(mask.shape)
        np.testing.assert_array_equal(inside, result.labels == int(roi.name))


def _contains(ring: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from matplotlib.path import Path as Ring

    return Ring(ring).contains_points(np.stack([x, y], axis=1))


def test_rois_of_cells_in_pieces_and_far_from_the_origin() -> None:
    labels = np.zeros((25, 70_000), np.uint32)
    labels[5:10, 69_000:69_004] = 1
    labels[20:22, 69_000:69_002] = 1
    with zipfile.ZipFile(io.BytesIO(imagej_rois(labels))) as archive:
        assert archive.namelist() == ["00001.roi", "00001-2.roi"]
        roi = roifile.ImagejRoi.frombytes(archive.read("00001.roi"))
    assert roi.coordinates().min(axis=0).tolist() == [69_000, 5]


def test_cellpose_seg_holds_what_cellpose_reads(written: dict[str, Path], result: SegmentationResult) -> None:
    seg = np.load(written["npy"], allow_pickle=True).item()
    np.testing.assert_array_equal(seg["masks"], result.labels)
    assert set(np.unique(seg["outlines"])) <= set(np.unique(result.labels))
    assert seg["filename"] == "/data/field.tif" and len(seg["ismanual"]) == result.count
    height, width = result.labels.shape
    assert [np.shape(flow) for flow in seg["flows"]] == [
        (1, height, width, 3), (1, height, width), (1, height, width, 3), (0,), (3, height, width)
    ]  # fmt: skip
    np.testing.assert_array_equal(seg["flows"][4][2] > 0, result.probability > 0.5)
    np.testing.assert_allclose(seg["flows"][4][:2], 5 * result.flows, rtol=1e-6)


def test_flows_are_the_raw_maps_with_their_names(written: dict[str, Path], result: SegmentationResult) -> None:
    with np.load(written["flows"], allow_pickle=False) as file:
        np.testing.assert_array_equal(file["maps"], result.maps)
        assert file["channels"].tolist() == ["flow_y", "flow_x", "probability"]


def test_pictures_have_the_size_of_the_image_and_show_the_outlines(
    written: dict[str, Path], result: SegmentationResult
) -> None:
    for name in ("overlay", "outlines"):
        picture = cv2.imread(str(written[name]))
        assert picture.shape == (*result.labels.shape, 3)
        coloured = picture.max(axis=2) - picture.min(axis=2) > 60
        assert coloured[result.labels == 0].mean() < 0.01 < coloured[result.labels > 0].mean()


def test_flow_colours_tell_directions_apart() -> None:
    angles = np.radians([0, 90, 180, 270])
    flows = np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)[:, None]
    colours = flow_colours(flows)[0].astype(int)
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 200
    assert flow_colours(np.zeros((2, 1, 1), np.float32)).max() == 0


def test_an_image_without_cells_is_written_in_every_format(make_oracle: Make, tmp_path: Path) -> None:
    _, segmenter = make_oracle(np.zeros((64, 64), np.int32))
    empty = segmenter.segment(np.zeros((30, 40), np.uint8))
    paths = save_result(empty, tmp_path, "empty", check_formats(HERE))
    assert all(path.stat().st_size > 0 for path in paths)
    assert len(pd.read_csv(tmp_path / "empty_cells.csv")) == 0
    assert json.loads((tmp_path / "empty_cells.geojson").read_text())["features"] == []
    assert zipfile.ZipFile(tmp_path / "empty_rois.zip").namelist() == []


def test_label_zarr_is_read_back_and_not_taken_for_an_image(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from dinocell.segmentation.outputs.label_zarr import write_label_zarr

    labels = np.random.default_rng(0).integers(0, 70_000, (1300, 1100), dtype=np.uint32)
    file = tmp_path / "field_labels.ome.zarr"
    for _ in range(2):  # a second run replaces the first
        write_label_zarr(file, labels, 0.25)
    found = read_image(file)
    np.testing.assert_array_equal(found.array, labels)
    assert (found.axes, found.pixel_size, found.array.dtype) == ("YX", 0.25, np.uint32)
    levels = [zarr.open(str(file))[str(level)] for level in range(3)]
    assert [level.shape for level in levels] == [(1300, 1100), (650, 550), (325, 275)]
    np.testing.assert_array_equal(levels[2][:], labels[::4, ::4])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert list_images([tmp_path]) == []


def test_a_failed_write_leaves_nothing_behind(
    result: SegmentationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"field_overlay\.png: cannot be written \(No space left on device\)"):
        save_result(result, tmp_path, "field", check_formats("overlay"))
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_are_named() -> None:
    assert [one.name for one in check_formats(["csv", "labels", "csv"])] == ["labels", "csv"]
    assert check_formats(" csv,labels,") == check_formats(["labels", "csv"])
    with pytest.raises(ConfigError, match=r"save: 'xlsx' is not a format; known: labels, zarr, overlay"):
        check_formats(["labels", "xlsx"])
    with pytest.raises(ConfigError, match="save: 'nothing'"):
        check_formats([])
    with pytest.raises(ConfigError, match="save: 'nothing'"):
        check_formats(",")


def test_formats_and_their_files_are_told_apart() -> None:
    assert all(name == one.name for name, one in FORMATS.items())
    assert len({one.suffix for one in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("name", ["zarr", "embeddings"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    one = FORMATS[name]
    with pytest.raises(ConfigError, match=rf"save: {name} needs {one.package}: pip install 'dinocell\[{one.extra}\]'"):
        check_formats(["labels", name])
    assert check_formats("labels,rois")
