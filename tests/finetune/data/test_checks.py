"""What users get told about their data before the first step."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.core.config import from_dict
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import DatasetInfo, LabelledItem, open_dataset
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.checks import cell_sizes, check_training_data, inspect_store, measure, problems
from dinocell.finetune.data.image_store import ImageStore, PreparedImage, shape2
from dinocell.finetune.data.run_data import open_items
from dinocell.finetune.output.report import diagnose
from dinocell.images.geometry.resize import resize_labels
from dinocell.labels.cells import cell_boxes, renumber
from dinocell.predict.placement import Placement


def image_of(labels: np.ndarray, image: np.ndarray | None = None, background: float = 1.0) -> PreparedImage:
    labels = renumber(labels)[0]
    if image is None:
        image = (labels > 0).astype(np.float32)
    return PreparedImage(
        image=image,
        labels=labels,
        ignore=None,
        boxes=cell_boxes(labels),
        truth=labels,
        unlabelled_weight=background,
        placement=Placement.of(shape2(labels), window=min(labels.shape)),
    )


def scaled(image: PreparedImage, scale: float) -> PreparedImage:
    """The image as if its file's had been brought to this scale by the size of its cells."""
    height, width = image.labels.shape
    size = round(height / scale), round(width / scale)
    place = Placement.of(size, window=32, scale=scale, rescales=True)
    return replace(image, truth=resize_labels(image.labels, size), placement=place)


def cells(step: int = 25, radius: int = 8, size: int = 128) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    for number, y in enumerate(range(15, size - 12, step)):
        for x in range(15, size - 30, step):
            cv2.circle(labels, (x + number, y), radius, int(labels.max()) + 1, -1)
    return labels


def said(images: list[PreparedImage], *, crop_size: int = 128, patch: float = 8.0, instances: bool = True) -> str:
    facts = [measure("set", str(i), image) for i, image in enumerate(images)]
    return " ".join(problems(facts, crop_size=crop_size, pixels_per_patch=patch, instances=instances))


def test_sizes_of_cells_are_summed_up_by_data_set():
    small, large = scaled(image_of(cells(radius=5)), 2.0), scaled(image_of(cells(radius=9)), 0.5)
    empty = image_of(np.zeros((64, 64), np.int32))
    facts = [measure("a", "1", small), measure("b", "2", large), measure("b", "3", empty), measure("c", "4", empty)]
    sizes = cell_sizes(facts)
    assert sizes.diameters == {"a": pytest.approx(10, abs=0.5), "b": pytest.approx(18, abs=0.5)}  # none without cells
    assert sizes.scales == {"a": 2.0, "b": 0.5}
    assert sizes.small_area == pytest.approx(np.pi * 25, abs=6) and sizes.diameter is not None


def test_good_masks_raise_no_doubt():
    assert said([image_of(cells())] * 4) == ""


def test_binary_masks_are_named_only_where_cells_are_to_be_told_apart():
    binary = [image_of(cells() > 0)] * 4
    assert "the masks look binary" in said(binary)
    assert "data.label_pieces=true" in said(binary)
    assert "binary" not in said(binary, instances=False)


def test_one_cell_per_image_is_not_a_binary_mask():
    labels = np.zeros((64, 64), np.int32)
    labels[20:44, 20:44] = 1
    assert "binary" not in said([image_of(labels)] * 4)


def test_class_masks_are_named():
    labels = cells()
    assert "scattered over several pieces" in said([image_of(np.where(labels > 0, labels % 3 + 1, 0))] * 4)


@pytest.mark.parametrize(
    ("turn", "words"),
    [(lambda a: a[::-1], "upside down"), (lambda a: a[:, ::-1], "mirrored"), (lambda a: a.T, "transposed")],
)
def test_turned_masks_are_named(turn, words):
    rng = np.random.default_rng(0)
    labels = np.zeros((128, 128), np.int32)
    for number in range(1, 13):
        cv2.circle(labels, tuple(rng.integers(10, 118, 2).tolist()), int(rng.integers(5, 12)), number, -1)
    image = cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 1.0)
    assert said([image_of(labels, image)] * 4) == ""
    assert words in said([image_of(np.ascontiguousarray(turn(labels)), image)] * 4)


def scattered(seed: int, size: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    for number in range(1, 15):
        cv2.circle(labels, tuple(rng.integers(12, size - 12, 2).tolist()), int(rng.integers(5, 12)), number, -1)
    return labels


def picture(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, 0.05, labels.shape)
    return (cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 1.0) + noise).astype(np.float32)


def test_shifted_masks_are_named_with_the_shift():
    truths = [scattered(seed) for seed in range(4)]
    shifted = [image_of(np.roll(t, (-9, 14), (0, 1)), picture(t)) for t in truths]
    assert "better shifted by 9 px down and 14 px left" in said(shifted)
    # An outline drawn a little too wide is no shift.
    wide = [image_of(cv2.dilate(t.astype(np.uint8), np.ones((3, 3))).astype(np.int32), picture(t)) for t in truths]
    assert said(wide) == ""


def test_masks_of_other_images_are_named():
    exchanged = [image_of(scattered(seed + 1), picture(scattered(seed))) for seed in range(4)]
    assert "check that each mask belongs to the image of the same name" in said(exchanged)


@pytest.mark.skipif("DINOCELL_REAL_DATA" not in os.environ, reason="needs real images (DINOCELL_REAL_DATA)")
def test_real_masks_lie_on_their_images_and_are_missed_on_others():
    """Seven public datasets are right as published; masks exchanged within a dataset of varied images are not."""
    root = Path(os.environ["DINOCELL_REAL_DATA"]) / "labelled"
    config = from_dict(FinetuneConfig, {"crop_size": 128, "input_size": 128, "overlap": 32})
    for dataset in sorted(root.iterdir()):
        store = ImageStore(open_dataset(dataset, "train"), config, print)
        facts = inspect_store(store, 5)
        text = " ".join(problems(facts, crop_size=512, pixels_per_patch=8, instances=True))
        assert "better" not in text and "belongs to" not in text, text
    nuclei = ImageStore(open_dataset(root / "usiigaci_phase", "train"), config, print)
    images = [nuclei.get(i) for i in range(4)]
    exchanged = [
        replace(a, labels=b.labels, boxes=b.boxes) for a, b in zip(images, images[2:] + images[:2], strict=True)
    ]
    assert "belongs to the image of the same name" in said(exchanged)


def test_cells_larger_than_the_crop_and_smaller_than_a_patch_are_named():
    assert "larger than three quarters of the crop (16 px)" in said([image_of(cells())] * 3, crop_size=16)
    assert "smaller than one patch" in said([image_of(cells(25, 2))] * 3)


def test_missing_labels_are_asked_about_unless_the_dataset_says_so():
    sparse = cells(40, 5)
    assert "fully_annotated: false" in said([image_of(sparse)] * 3)
    assert "fully_annotated" not in said([image_of(sparse, background=0.05)] * 3)


def store_of(images: list[PreparedImage]) -> ImageStore:
    nowhere = Path("x.png")
    info = DatasetInfo(name="set")
    items = [
        LabelledItem(stem=str(i), image=nowhere, mask=nowhere, ignore=None, dataset=info, split="train")
        for i in range(len(images))
    ]
    store = ImageStore(items, FinetuneConfig(), lambda message: None)
    store._cache.update(enumerate(images))
    return store


def test_some_empty_images_are_fine_and_all_empty_is_an_error():
    empty = image_of(np.zeros((64, 64), np.int32))
    arguments = {"crop_size": 64, "pixels_per_patch": 8.0, "instances": True}
    check = check_training_data(store_of([empty, image_of(cells())]), 64, **arguments)
    assert "1 without any cell (used as background)" in check.summary[0]
    with pytest.raises(DataError, match="all 3 training masks looked at are empty"):
        check_training_data(store_of([empty] * 3), 64, **arguments)


def test_unreadable_images_only_is_an_error_with_the_first_reason():
    with pytest.raises(DataError, match=r"none of the 2 training images can be used; the first reason: .*x.png"):
        store = store_of([image_of(cells())] * 2)
        store._cache.clear()
        check_training_data(store, 64, crop_size=64, pixels_per_patch=8.0, instances=True)


def test_missing_root_is_a_usage_error():
    with pytest.raises(ConfigError, match=r"data.root: no dataset given"):
        open_items(FinetuneConfig(), "train")


def rows(split: str, values: list[float], **extra: list[float]) -> list[dict]:
    columns = {"loss": values, **extra}
    return [{"step": 10 * i, "split": split, **{k: v[i] for k, v in columns.items()}} for i in range(len(values))]


def test_report_names_flat_loss_overfitting_and_dead_maps():
    falling = [1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28, 0.26, 0.25]
    flat = " ".join(diagnose(rows("train", [0.5] * 10), [], "MMA"))
    assert "hardly fell" in flat
    val = rows("val", [0.6, 0.4, 0.45, 0.5, 0.6], MMA=[0.1, 0.5, 0.5, 0.45, 0.4], spread_flow_y=[0.1] * 4 + [1e-5])
    text = " ".join(diagnose(rows("train", falling), val, "MMA"))
    assert "overfits" in text and "lowest at step 10" in text
    assert "best at step 10" in text
    assert "Dead map: flow_y" in text
    healthy = rows("val", [0.6, 0.4, 0.3, 0.25], MMA=[0.1, 0.3, 0.5, 0.6])
    assert "still rising" in " ".join(diagnose(rows("train", falling), healthy, "MMA"))
