"""Outlines are valid simple polygons, cover exactly the cell's pixels, and meet without overlap."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely.geometry import box

from dinocell.labels.polygons import Polygon, cell_polygons, mask_polygons


def as_shape(polygons: list[Polygon]) -> shapely.Geometry:
    shapes = [shapely.Polygon(polygon.exterior, polygon.holes) for polygon in polygons]
    return shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes)


def squares(mask: np.ndarray) -> shapely.Geometry:
    return shapely.union_all([box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)])


@settings(max_examples=300, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_of_any_mask_are_its_pixels(mask: np.ndarray) -> None:
    if not mask.any():
        assert mask_polygons(mask) == []
        return
    shape = as_shape(mask_polygons(mask))
    assert shape.is_valid, shapely.is_valid_reason(shape)
    assert shape.area == mask.sum()
    assert shape.equals(squares(mask))


def test_a_ring_around_a_ring_keeps_its_holes_apart() -> None:
    mask = np.ones((11, 11), bool)
    mask[1:-1, 1:-1] = False
    mask[3:-3, 3:-3] = True
    mask[5, 5] = False
    outer, inner = mask_polygons(mask)
    assert len(outer.holes) == len(inner.holes) == 1
    assert as_shape([outer, inner]).equals(squares(mask))


def test_a_hole_that_touches_the_border_by_a_corner_is_valid() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    shape = as_shape(mask_polygons(mask))
    assert shape.is_valid and shape.area == 7


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32])
def test_neighbours_share_their_border(dtype: type) -> None:
    labels = np.zeros((12, 20), dtype)
    labels[2:9, 3:10] = 5
    labels[2:9, 10:17] = 9
    found = dict(cell_polygons(labels))
    assert list(found) == [5, 9]
    first, second = as_shape(found[5]), as_shape(found[9])
    assert first.area == second.area == 49
    assert first.intersection(second).area == 0 and first.intersection(second).length == 7
    assert first.bounds == (3, 2, 10, 9), "x, y of pixel corners"


def test_an_image_without_background_gives_every_label() -> None:
    assert [number for number, _ in cell_polygons(np.array([[1, 2], [1, 3]]))] == [1, 2, 3]
    assert list(cell_polygons(np.zeros((4, 4), int))) == []


def test_huge_label_numbers_are_kept() -> None:
    labels = np.array([[0, 4_000_000_000], [7, 7]], np.uint32)
    assert [number for number, _ in cell_polygons(labels)] == [7, 4_000_000_000]
