"""The embedded sample: the same everywhere for one seed, exact labels, harder than a threshold can solve."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from dinocell.datasets.synthetic.sample import MODALITIES, make_image, write_sample
from dinocell.evaluation.baseline import otsu_watershed
from dinocell.metrics import maximum_matching_accuracy


@pytest.fixture(scope="module")
def fields():
    return {modality: [make_image(seed, 160, modality) for seed in range(16)] for modality in MODALITIES}


@pytest.mark.parametrize("modality", MODALITIES)
def test_same_seed_same_field_other_seed_other_field(modality):
    image, labels = make_image(3, 128, modality)
    again, labels_again = make_image(3, 128, modality)
    other, _ = make_image(4, 128, modality)
    assert image.dtype == again.dtype and np.array_equal(image, again) and np.array_equal(labels, labels_again)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_label_is_one_connected_region_and_numbers_have_no_gap(fields, modality):
    for image, labels in fields[modality]:
        assert labels.dtype == np.int32 and labels.shape == image.shape == (160, 160)
        assert np.array_equal(np.unique(labels[labels > 0]), np.arange(1, labels.max() + 1))
        for label in range(1, labels.max() + 1):
            assert ndimage.label(labels == label)[1] == 1
            assert (labels == label).sum() >= 30


@pytest.mark.parametrize("modality", MODALITIES)
def test_fields_hold_what_a_training_set_needs(fields, modality):
    images = [image for image, _ in fields[modality]]
    labels = [labels for _, labels in fields[modality]]
    assert {image.dtype.name for image in images} == {"uint8", "uint16"}
    # Seen pixels are neither black nor burnt out.
    assert all(np.mean(image == np.iinfo(image.dtype).max) < 0.01 and np.ptp(image) > 20 for image in images)
    diameters = [2 * np.sqrt(np.bincount(x.ravel())[1:] / np.pi) for x in labels]
    assert 20 <= np.median(np.concatenate(diameters)) <= 40
    assert max(np.mean(x > 0) for x in labels) > 0.3
    assert any(_touching_pairs(x) >= 5 for x in labels)


def test_some_fields_are_empty_and_most_are_not():
    counts = [make_image(seed, 64, "phase")[1].max() for seed in range(90)]
    assert 1 <= counts.count(0) <= 20


@pytest.mark.parametrize("modality", MODALITIES)
def test_cells_can_be_told_from_background(fields, modality):
    """What is drawn lies where the labels say: the image is steeper at the cells' borders than in background."""
    for image, labels in fields[modality]:
        if labels.max() == 0:
            continue
        smooth = ndimage.gaussian_filter(image.astype(np.float64), 1)
        edges = ndimage.gaussian_gradient_magnitude(smooth, 1)
        border = (ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)) & (labels > 0)
        far = ndimage.distance_transform_edt(labels == 0) > 8
        if far.sum() > 200:
            assert np.median(edges[border]) > 1.5 * np.median(edges[far])


def test_threshold_and_watershed_do_not_solve_it(fields):
    scores = [
        maximum_matching_accuracy(labels, otsu_watershed(image))
        for modality in MODALITIES
        for image, labels in fields[modality]
    ]
    assert 0.15 < np.mean(scores) < 0.5


def test_larger_fields_hold_more_cells():
    small = np.mean([make_image(seed, 128, "phase")[1].max() for seed in range(8)])
    large = np.mean([make_image(seed, 384, "phase")[1].max() for seed in range(8)])
    assert 4 * small < large < 16 * small


def test_write_sample_makes_a_data_set_and_larger_unlabelled_fields(tmp_path: Path):
    write_sample(tmp_path, n_unlabelled=4, n_train=3, n_val=2, n_test=1, size=96, seed=5)
    names = []
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        images = sorted((tmp_path / "labelled" / split / "images").iterdir())
        masks = sorted((tmp_path / "labelled" / split / "masks").iterdir())
        assert [p.stem for p in images] == [p.stem for p in masks] and len(images) == count
        names += [p.stem for p in images]
        for path in masks:
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint16 and mask.shape == (96, 96)
    assert len(set(names)) == 6
    unlabelled = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((tmp_path / "unlabelled").iterdir())]
    assert [image.shape for image in unlabelled] == [(192, 192)] * 4
    described = (tmp_path / "labelled" / "dataset.yaml").read_text()
    assert "fully_annotated: true" in described and "licence: CC0-1.0" in described and "source:" in described


def test_write_sample_is_the_same_twice(tmp_path: Path):
    for name in ("a", "b"):
        write_sample(tmp_path / name, n_unlabelled=1, n_train=2, n_val=0, n_test=1, size=64, seed=1)
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.*") if p.is_file()}
    second = {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.*") if p.is_file()}
    assert first == second and len(first) == 8


def test_sample_opens_as_a_labelled_data_set(tmp_path: Path):
    from dinocell.datasets.labelled import open_dataset

    write_sample(tmp_path, n_unlabelled=0, n_train=3, n_val=1, n_test=2, size=64, seed=0)
    items = open_dataset(tmp_path / "labelled", "test")
    assert len(items) == 2 and all(item.dataset.fully_annotated for item in items)


def _touching_pairs(labels):
    pairs = set()
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        touch = (first != second) & (first > 0) & (second > 0)
        pairs |= {tuple(sorted(pair)) for pair in zip(first[touch].tolist(), second[touch].tolist(), strict=True)}
    return len(pairs)
