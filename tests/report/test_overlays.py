"""Overlays show the labels they are given, on any image."""

import numpy as np
import pytest

from dinocell.labels.contours import trace_contours
from dinocell.report import error_map, overlay, panel, to_rgb
from dinocell.report.overlays import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE

GREEN, RED, BLUE = (np.array(c) for c in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE))


def test_error_map_colours_each_kind_of_pixel():
    truth = np.array([[0, 1, 1, 0]])
    prediction = np.array([[0, 5, 0, 2]])
    shown = error_map(truth, prediction)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown[0], [[0, 0, 0], TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE])


def test_error_map_colours_are_green_red_and_blue():
    assert GREEN.argmax() == 1 and RED.argmax() == 0 and BLUE.argmax() == 2


def test_error_map_leaves_the_hue_on_an_image():
    truth = np.zeros((20, 20), int)
    truth[2:9, 2:9] = 1
    prediction = np.zeros((20, 20), int)
    prediction[12:19, 12:19] = 1
    shown = error_map(truth, prediction, np.random.default_rng(0).integers(0, 4000, (20, 20), dtype=np.uint16))
    assert shown[5, 5].argmax() == 2 and shown[15, 15].argmax() == 0
    assert np.ptp(shown[0, 15].astype(int)) == 0


def test_contours_of_a_square_are_its_outermost_pixels():
    labels = np.zeros((9, 9), np.int32)
    labels[2:7, 2:7] = 300
    expected = labels > 0
    expected[3:6, 3:6] = False
    assert np.array_equal(trace_contours(labels), expected)


def test_contours_run_between_touching_cells_and_not_along_the_rim():
    labels = np.ones((6, 8), np.int32)
    labels[:, 4:] = 2
    assert np.array_equal(np.flatnonzero(trace_contours(labels).any(axis=0)), [3, 4])


def test_labels_beyond_float32_are_not_confused():
    labels = np.array([[2**24, 2**24, 2**24 + 1, 2**24 + 1]] * 3, np.int64)
    assert np.array_equal(trace_contours(labels)[1], [False, True, True, False])


def test_neighbouring_cells_differ_in_colour():
    labels = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((9, 9), int))
    shown = overlay(np.zeros((108, 108, 3), np.uint8), labels, fill=1.0)
    grid = shown[4::9, 4::9].astype(int)  # the cells' centres
    assert np.abs(np.diff(grid, axis=0)).sum(axis=2).min() > 0
    assert np.abs(np.diff(grid, axis=1)).sum(axis=2).min() > 0
    assert np.abs(grid[1:, 1:] - grid[:-1, :-1]).sum(axis=2).min() > 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.bool_])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_overlay_takes_any_image_and_changes_outlines_only(dtype, channels):
    shape = (40, 30) if channels is None else (40, 30, channels)
    image = (np.random.default_rng(1).random(shape) * 200 - (50 if dtype in (np.int32, np.float32) else 0)).astype(
        dtype
    )
    before = image.copy()
    labels = np.zeros((40, 30), np.uint16)
    labels[5:15, 5:15] = 4
    labels[15:30, 5:15] = 9
    shown = overlay(image, labels)
    assert shown.shape == (40, 30, 3) and shown.dtype == np.uint8
    assert np.array_equal(image, before)
    changed = (shown != to_rgb(image)).any(axis=2)
    assert not (changed & ~trace_contours(labels)).any() and changed.any()


def test_outlines_grow_with_the_image():
    labels = np.zeros((1600, 1600), np.int32)
    labels[400:1200, 400:1200] = 1
    image = np.zeros((1600, 1600), np.uint8)
    marked = overlay(image, labels)[800].any(axis=1)
    assert marked.sum() == 2 * 3


def test_to_rgb_keeps_8_bit_rgb_and_orders_16_bit_values():
    rgb = np.random.default_rng(2).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_rgb(rgb), rgb)
    ramp = np.linspace(100, 60000, 64).astype(np.uint16).reshape(8, 8)
    shown = to_rgb(ramp)[..., 0].astype(int).ravel()
    assert (np.diff(shown) >= 0).all() and shown[0] == 0 and shown[-1] == 255


def test_to_rgb_survives_nan_and_constant_images():
    image = np.ones((4, 4), np.float32)
    image[0, 0] = np.nan
    assert to_rgb(image).shape == (4, 4, 3)
    image[1] = 5
    assert to_rgb(image)[0, 0].max() == 0


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        overlay(np.zeros((4, 4)), np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="shape"):
        error_map(np.zeros((4, 4)), np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="-1"):
        trace_contours(np.array([[-1, 0]]))
    with pytest.raises(ValueError, match="shape"):
        to_rgb(np.zeros((4, 4, 2)))


def test_panel_holds_each_image_unchanged_below_its_title():
    images = [np.full((20, 30, 3), value, np.uint8) for value in (60, 120, 180)]
    shown = panel(images, ["one", "two", "three"], columns=2, height=20)
    for value in (60, 120, 180):
        assert (shown == value).all(axis=2).sum() >= 20 * 30
    untitled = panel(images, ["", "", ""], columns=2, height=20)
    assert untitled.shape[0] < shown.shape[0]
    assert np.unique(untitled).tolist() == [60, 120, 180, 255]
    assert (shown[:26] < 120).any()
