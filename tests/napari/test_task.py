"""What the plugin computes, without napari: planes, tables, progress, cancel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinocell.core.errors import ConfigError, DataError
from dinocell.napari.task import Cancelled, plane_indices, segment_layer
from dinocell.segmentation import Segmenter, SegmentOptions
from dinocell.segmentation.notes import Note

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def segmenter(model_folder: Path) -> Segmenter:
    return Segmenter(model_folder, device="cpu", precision="float32", batch_size=2)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape).astype(np.uint8)


class Lazy:
    """Like a dask or zarr array: planes become NumPy only when they are asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.asked = array, array.shape, []  # type: ignore[var-annotated]

    def __getitem__(self, index: Any) -> np.ndarray:
        self.asked.append(index)
        return self.array[index]


@pytest.mark.parametrize("shape", [(70, 90), (150, 100), (30, 40)])
def test_a_plain_image_gives_what_the_segmenter_gives(shape: tuple[int, int], segmenter: Segmenter) -> None:
    image = noise(*shape)
    cells = segment_layer(segmenter, image, pixel_size=0.5)
    expected = segmenter.segment(image)
    np.testing.assert_array_equal(cells.labels, expected.labels)
    assert cells.labels.dtype == expected.labels.dtype
    np.testing.assert_array_equal(cells.features["index"], np.arange(1, expected.count + 1))
    np.testing.assert_allclose(cells.features["area_um2"], np.bincount(cells.labels.ravel())[1:] / 4)
    assert "area_um2" not in segment_layer(segmenter, image).features


def test_colour_is_read_as_colour(segmenter: Segmenter) -> None:
    image = noise(70, 80, 3)
    cells = segment_layer(segmenter, image, rgb=True)
    np.testing.assert_array_equal(cells.labels, segmenter.segment(image, axes="YXS").labels)
    assert "mean_green" in cells.features


def test_stacks_read_plane_by_plane_with_labels_used_once(segmenter: Segmenter) -> None:
    stack = Lazy(noise(2, 3, 64, 70))
    cells = segment_layer(segmenter, stack)
    assert cells.labels.shape == stack.shape and stack.asked == plane_indices(stack.shape, rgb=False)
    table = cells.features.set_index("index")
    assert sorted(table.index) == list(range(1, cells.labels.max() + 1))
    for index in np.ndindex(2, 3):
        found = np.unique(cells.labels[index])
        expected = segmenter.segment(stack.array[index])
        np.testing.assert_array_equal(cells.labels[index] > 0, expected.labels > 0)
        assert len(found) - 1 == expected.count > 0
        rows = table.loc[found[found > 0]]
        assert (rows["plane_0"] == index[0]).all() and (rows["plane_1"] == index[1]).all()
        np.testing.assert_allclose(rows["mean_gray"], expected.table()["mean_gray"])


def test_one_plane_of_a_stack(segmenter: Segmenter) -> None:
    stack = noise(4, 64, 70)
    cells = segment_layer(segmenter, stack, planes=[(2,)])
    np.testing.assert_array_equal(cells.labels[2], segmenter.segment(stack[2]).labels)
    assert not cells.labels[[0, 1, 3]].any() and set(cells.features["plane"]) == {2}


def test_constant_planes_have_no_cells_and_say_so(segmenter: Segmenter) -> None:
    stack = np.stack([np.full((64, 64), 9, np.uint8), noise(64, 64)])
    cells = segment_layer(segmenter, stack)
    assert not cells.labels[0].any() and cells.labels[1].any()
    assert cells.notes == (Note(text="plane (0,): the image is constant: no cells", severity="warning"),)
    empty = segment_layer(segmenter, stack[0])
    assert len(empty.features) == 0 and {"index", "area_px"} <= set(empty.features)


@pytest.mark.parametrize("large", [False, True])
def test_progress_rises_with_the_windows(large: bool, model_folder: Path) -> None:
    segmenter = Segmenter(model_folder, device="cpu", precision="float32")
    segmenter.large_pixels = 1 if large else segmenter.large_pixels
    parts: list[float] = []
    segment_layer(segmenter, noise(2, 64, 160), report=parts.append)
    assert parts == sorted(parts) and parts[-1] == 1.0
    assert parts == pytest.approx([1 / 6, 2 / 6, 3 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1]), "three windows a plane"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_progress_ends_with_the_last_forward_pass(
    views: int, estimated: bool, large: bool, model_folder: Path, flows_folder: Path
) -> None:
    segmenter = Segmenter(
        flows_folder if estimated else model_folder, device="cpu", precision="float32", batch_size=2, views=views
    )
    segmenter.large_pixels = 1 if large else segmenter.large_pixels
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    segmenter.model.register_forward_hook(count)
    parts: list[tuple[float, int]] = []
    options = SegmentOptions(diameter="auto" if estimated else "own")
    segment_layer(segmenter, noise(160, 160), options=options, report=lambda part: parts.append((part, passes)))
    shares = [part for part, _ in parts]
    assert shares == sorted(shares) and len(set(shares)) > 4 and shares[-1] == 1
    assert shares[-3] < 1, "it grows to the end"
    assert all(seen == passes for part, seen in parts if part == 1), "1 is told after the last pass only"
    assert passes == (6 if large else 5) * views or estimated


def test_cancel_is_asked_for_planes_without_cells(segmenter: Segmenter) -> None:
    asked: list[int] = []
    stack = np.full((3, 64, 64), 9, np.uint8)
    with pytest.raises(Cancelled):
        segment_layer(segmenter, stack, cancelled=lambda: bool(asked.append(1) or len(asked) > 1))


@pytest.mark.parametrize("large", [False, True])
def test_cancel_stops_before_the_next_window(large: bool, model_folder: Path) -> None:
    segmenter = Segmenter(model_folder, device="cpu", precision="float32")
    segmenter.large_pixels = 1 if large else segmenter.large_pixels
    parts: list[float] = []
    image = noise(160, 160)
    with pytest.raises(Cancelled):
        segment_layer(segmenter, image, report=parts.append, cancelled=lambda: len(parts) >= 3)
    assert len(parts) == 3, "of nine windows"
    assert segment_layer(segmenter, image).labels.any(), "nothing of the cancelled run is left in the model"


@pytest.mark.parametrize("large", [False, True])
def test_progress_and_cancel_while_the_diameter_is_estimated(large: bool, flows_folder: Path) -> None:
    segmenter = Segmenter(flows_folder, device="cpu", precision="float32")
    segmenter.large_pixels = 1 if large else segmenter.large_pixels
    image, options = noise(160, 160), SegmentOptions(diameter="auto")
    parts: list[float] = []
    cells = segment_layer(segmenter, image, options=options, report=parts.append)
    assert parts == sorted(parts) and parts[-1] == 1.0
    assert cells.labels.shape == image.shape and cells.notes
    asked: list[int] = []
    with pytest.raises(Cancelled):
        segment_layer(segmenter, image, options=options, cancelled=lambda: bool(asked.append(1) or len(asked) > 2))


def test_options_and_errors_come_through(segmenter: Segmenter) -> None:
    image = noise(64, 64)
    fewer = segment_layer(segmenter, image, options=SegmentOptions(min_size=40)).labels
    np.testing.assert_array_equal(fewer, segmenter.segment(image, min_size=40).labels)
    with pytest.raises(DataError, match="rows and columns"):
        segment_layer(segmenter, image[0])
    with pytest.raises(ConfigError, match="scales the image by"):
        segment_layer(segmenter, image, options=SegmentOptions(diameter=0.001))
    with pytest.raises(DataError, match="must be numeric"):
        segment_layer(segmenter, np.full((20, 20), "a"))
    assert torch.is_grad_enabled()
