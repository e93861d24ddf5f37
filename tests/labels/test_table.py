"""The cell table against scikit-image, shapely and shapes whose measures are known."""

import numpy as np
import pytest
import shapely
from skimage import draw, measure

from dinocell.labels import table
from dinocell.labels.table import cell_table


def blobs(seed: int, size: int = 200, cells: int = 25) -> np.ndarray:
    """Touching and overlapping ellipses, some cut by the border, with gaps in the numbering."""
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size + 30), np.int32)
    for index in range(cells):
        rr, cc = draw.ellipse(
            random.uniform(0, size), random.uniform(0, size + 30), *random.uniform(2, 25, 2), labels.shape,
            random.uniform(0, np.pi),
        )  # fmt: skip
        labels[rr, cc] = 3 * index + 2
    return labels


@pytest.mark.parametrize("band", [7, 64, 2048])
def test_measures_equal_scikit_image(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = blobs(0)
    monkeypatch.setattr(table, "MIN_ROWS", 1)
    monkeypatch.setattr(table, "BAND_PIXELS", band * labels.shape[1])
    image = np.random.default_rng(1).integers(0, 60_000, labels.shape).astype(np.uint16)
    ours = cell_table(labels, {"dapi": image}, probability=image / 60_000, pixel_size=0.5)
    theirs = measure.regionprops_table(
        labels, image, properties=(
            "label", "area", "centroid", "perimeter", "eccentricity", "intensity_mean", "intensity_min", "intensity_max"
        ),
    )  # fmt: skip
    pairs = {
        "label": "label", "area_px": "area", "centroid_y": "centroid-0", "centroid_x": "centroid-1",
        "perimeter_px": "perimeter", "eccentricity": "eccentricity", "mean_dapi": "intensity_mean",
        "min_dapi": "intensity_min", "max_dapi": "intensity_max",
    }  # fmt: skip
    for mine, other in pairs.items():
        np.testing.assert_allclose(ours[mine], theirs[other], rtol=1e-6, atol=1e-6, err_msg=mine)
    np.testing.assert_allclose(ours["area_um2"], theirs["area"] * 0.25)
    np.testing.assert_allclose(ours["confidence"], theirs["intensity_mean"] / 60_000, rtol=1e-6)


def test_solidity_is_area_over_the_hull_of_pixel_squares() -> None:
    labels = blobs(3)
    ours = cell_table(labels).set_index("label")["solidity"]
    for number in np.unique(labels)[1:]:
        squares = [shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(labels == number)]
        assert ours[number] == pytest.approx(len(squares) / shapely.union_all(squares).convex_hull.area, rel=1e-6)


def test_a_rectangle_has_the_measures_of_a_rectangle() -> None:
    labels = np.zeros((50, 60), np.uint16)
    labels[10:20, 5:45] = 7
    row = cell_table(labels, pixel_size=2.0).iloc[0]
    assert (row["label"], row["area_px"], row["area_um2"]) == (7, 400, 1600)
    assert (row["centroid_y"], row["centroid_x"], row["solidity"]) == (14.5, 24.5, 1.0)
    assert row["eccentricity"] == pytest.approx(np.sqrt(1 - (10**2 - 1) / (40**2 - 1)), rel=1e-6)
    assert row["perimeter_px"] == pytest.approx(2 * (9 + 39))
    assert not row["touches_border"]


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 135, 170])
def test_orientation_is_counter_clockwise_from_the_x_axis(angle: float) -> None:
    y, x = np.mgrid[-60:61, -60:61]
    turn = np.radians(angle)
    along = x * np.cos(turn) - y * np.sin(turn)  # rows grow downwards
    across = x * np.sin(turn) + y * np.cos(turn)
    labels = ((along / 50) ** 2 + (across / 12) ** 2 <= 1).astype(np.int32)
    measured = cell_table(labels)["orientation_deg"][0]
    assert abs((measured - angle + 90) % 180 - 90) < 0.5


def test_border_cells_are_those_that_touch_a_rim() -> None:
    labels = np.zeros((30, 30), np.int32)
    for number, at in enumerate(((0, 9), (29, 9), (9, 0), (9, 29), (1, 20), (15, 15)), start=1):
        labels[at] = number
    assert cell_table(labels)["touches_border"].tolist() == [True, True, True, True, False, False]


def test_no_cells_give_an_empty_table_with_all_columns() -> None:
    empty = cell_table(np.zeros((8, 9), np.uint16), {"gray": np.zeros((8, 9))}, np.zeros((8, 9)))
    assert len(empty) == 0 and {"label", "area_px", "confidence", "mean_gray", "solidity"} <= set(empty.columns)


def test_one_pixel_cells_have_finite_measures() -> None:
    labels = np.zeros((5, 5), np.int32)
    labels[2, 2] = 1
    row = cell_table(labels).iloc[0]
    assert row["area_px"] == 1 and row["solidity"] == 1 and row["eccentricity"] == 0
    assert np.isfinite(row.drop("area_um2").astype(float)).all()
