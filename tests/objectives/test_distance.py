"""Distance targets are scipy's distance transform per cell; decoding separates touching cells."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dinocell.objectives.distance import distance_to_masks, masks_to_distance
from dinocell.objectives.semantic import mask_to_instances


def test_equals_scipy_s_distance_of_each_cell(voronoi):
    labels = voronoi(1)
    distance = masks_to_distance(labels)
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        depth = ndimage.distance_transform_edt(mask)
        np.testing.assert_allclose(distance[mask], depth[mask] / depth.max(), atol=1e-5)
    assert not distance[labels == 0].any()


def test_touching_cells_are_separated(disks, matches):
    labels = disks(80, [(40, 28, 14), (40, 54, 14), (12, 12, 9)])
    assert matches(labels, distance_to_masks(masks_to_distance(labels))) == 1


def test_a_cell_that_fills_the_image_and_one_pixel_cells():
    assert (masks_to_distance(np.ones((6, 9), int)) == 1).all()
    alone = np.zeros((5, 5), int)
    alone[0, 0] = 9
    assert masks_to_distance(alone)[0, 0] == 1
    assert not distance_to_masks(np.zeros((0, 4))).any()


def test_a_concave_cell_s_marker_lies_inside_it():
    labels = np.zeros((60, 60), int)
    y, x = np.mgrid[:60, :60] - 30
    labels[(np.hypot(y, x) < 26) & (np.hypot(y, x) > 12) & (x < 8)] = 1
    assert distance_to_masks(masks_to_distance(labels)).max() == 1


def test_watershed_splits_touching_disks_that_components_join(disks, matches):
    labels = disks(80, [(40, 25, 16), (40, 55, 16)])
    assert mask_to_instances(labels > 0, "components").max() == 1
    assert matches(labels, mask_to_instances(labels > 0, "watershed")) == 1
