"""Which crops are trained on: sampling shares, independence of processes and threads, exact targets and weights."""

import numpy as np
import pytest

from dinocell.core.config import from_dict
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import DatasetInfo, LabelledItem
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.augment import brighten
from dinocell.finetune.data.crops import CropDataset, labels_around
from dinocell.finetune.data.image_store import ImageStore, PreparedImage, prepare, shape2, truth_weights
from dinocell.finetune.data.loader import BatchLoader
from dinocell.finetune.data.sampler import SampleOrder, dataset_shares, sample_rng
from dinocell.labels.cells import cell_boxes
from dinocell.labels.files import write_labels
from dinocell.models import GRAY_MEAN, GRAY_STD
from dinocell.objectives import build_objective
from dinocell.objectives.flows.targets import masks_to_flows
from dinocell.predict.placement import Placement


def config(**changes: object) -> FinetuneConfig:
    base: dict = {"crop_size": 32, "input_size": 32, "overlap": 8}
    return from_dict(FinetuneConfig, {**base, **changes})


def disks(shape: tuple[int, int] = (64, 80)) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    for number, (y, x, r) in enumerate([(12, 15, 9), (40, 20, 12), (20, 60, 14), (52, 66, 8)], 1):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= r * r] = number
    return labels


def prepared(labels: np.ndarray, background: float = 1.0, ignore: np.ndarray | None = None) -> PreparedImage:
    image = np.where(labels > 0, 1.0, -1.0).astype(np.float32) + 0.01 * labels.astype(np.float32)
    return PreparedImage(
        image=image,
        labels=labels,
        ignore=ignore,
        boxes=cell_boxes(labels),
        truth=labels,
        unlabelled_weight=background,
        placement=Placement.of(shape2(labels), window=min(labels.shape)),
    )


def crop_dataset(cfg: FinetuneConfig) -> CropDataset:
    store = ImageStore([], cfg, print)
    return CropDataset(store, SampleOrder([0], "proportional", 0), build_objective(cfg.objective), cfg)


def test_proportional_epoch_shows_every_image_once():
    order = SampleOrder([0] * 7 + [1] * 3, "proportional", seed=4)
    for epoch in range(3):
        assert sorted(order(epoch * 10 + i) for i in range(10)) == list(range(10))
    assert [order(i) for i in range(10)] != [order(10 + i) for i in range(10)]


@pytest.mark.parametrize(("rule", "expected"), [("proportional", 0.9), ("balanced", 0.5), ("sqrt", 0.75)])
def test_sampling_rules_give_each_dataset_its_share(rule, expected):
    owners = [0] * 90 + [1] * 10
    assert dataset_shares([90, 10], rule)[0] == pytest.approx(expected)
    order = SampleOrder(owners, rule, seed=0)
    drawn = [owners[order(n)] for n in range(2000)]
    assert np.mean(np.array(drawn) == 0) == pytest.approx(expected, abs=0.01)


def test_given_shares_replace_the_rule():
    owners = [0] * 90 + [1] * 10
    order = SampleOrder(owners, "proportional", seed=0, shares=[1, 3])
    drawn = np.array([owners[order(n)] for n in range(2000)])
    assert np.mean(drawn == 1) == pytest.approx(0.75, abs=0.01)


def test_weights_divide_the_share_of_a_dataset_among_its_images():
    owners, weights = [0, 0, 0, 0, 1, 1], [1.0, 2.0, 5.0, 2.0, 9.0, 1.0]
    order = SampleOrder(owners, "proportional", seed=3).weighted(weights)
    drawn = np.bincount([order(n) for n in range(6000)], minlength=6) / 6000
    np.testing.assert_allclose(
        drawn, np.array([1, 2, 5, 2, 0, 0]) / 10 * 4 / 6 + np.array([0] * 4 + [9, 1]) / 30, atol=0.02
    )
    again = SampleOrder(owners, "proportional", seed=3).weighted(weights)
    assert [again(n) for n in range(60)] == [order(n) for n in range(60)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], "for 2 datasets; give one number above 0 for each"),
        ([1.0, float("inf")], "for 2 datasets; give one number above 0 for each"),
        ([1.0, 0.0], "every number must be above 0"),
    ],
)
def test_shares_that_do_not_fit_the_datasets_are_refused(shares, message):
    with pytest.raises(ConfigError, match=rf"data\.shares: .*{message}"):
        config(data={"root": ["a", "b"], "shares": shares})


def test_rare_dataset_is_not_starved_by_rounding():
    # 1 of 400 images with the share 1/400: over many epochs it must appear, whatever each epoch rounds.
    order = SampleOrder([0] * 399 + [1], "sqrt", seed=1)
    drawn = np.array([order(n) for n in range(4000)])
    assert np.mean(drawn == 399) == pytest.approx(dataset_shares([399, 1], "sqrt")[1], rel=0.1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 3])
def test_samples_do_not_depend_on_processes_threads_or_restart(world_size, workers):
    def numbers(steps: tuple[int, int]) -> list[int]:
        seen: dict[int, list[int]] = {step: [] for step in range(*steps)}
        for rank in range(world_size):
            loader = BatchLoader(
                lambda n: n,  # type: ignore[arg-type, return-value]
                batch_size=8,
                rank=rank,
                world_size=world_size,
                accumulate=2,
                steps=steps,
                workers=workers,
            )
            loader._collate = lambda samples: samples  # type: ignore[method-assign, assignment, return-value]
            for step, samples in zip(range(*steps), loader, strict=True):
                seen[step] += samples  # type: ignore[arg-type]
        return [n for step in range(*steps) for n in seen[step]]

    assert numbers((0, 4)) == list(range(32))
    assert numbers((2, 4)) == list(range(16, 32))


def test_equal_numbers_give_equal_crops_and_others_differ():
    cfg = config(augment={"noise": 1.0, "blur": 0.5, "gamma": [0.5, 2.0], "scale": [0.7, 1.5]})
    cut = crop_dataset(cfg).cut
    image = prepared(disks())
    first, again, other = (cut(image, sample_rng(0, n)) for n in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.target, again.target)
    assert not np.array_equal(first.image, other.image)


def test_crop_targets_are_the_whole_image_targets_cut_out():
    labels = disks()
    whole = masks_to_flows(labels, "leak_free")  # Cellpose's variant lets cells outside the crop leak into it
    cfg = config(
        augment={"flips": False, "rotations": False, "invert": 0.0, "brightness": [1.0, 1.0]},
        objective={"flow_variant": "leak_free"},
    )
    for number in range(6):
        rng = sample_rng(1, number)
        sample = crop_dataset(cfg).cut(prepared(labels), rng)
        y, x = next(
            (y, x)
            for y in range(33)
            for x in range(49)
            if np.array_equal(prepared(labels).image[y : y + 32, x : x + 32], sample.image)
        )
        np.testing.assert_allclose(sample.target[:2], whole[:, y : y + 32, x : x + 32], atol=1e-5)
        np.testing.assert_array_equal(sample.target[2], labels[y : y + 32, x : x + 32] > 0)


def test_turned_crops_keep_image_target_and_weight_together():
    ignore = np.zeros((64, 80), bool)
    ignore[:20] = True
    cfg = config(augment={"invert": 0.0, "brightness": [1.0, 1.0]})
    for number in range(8):
        sample = crop_dataset(cfg).cut(prepared(disks(), 0.05, ignore), sample_rng(2, number))
        inside = sample.image > 0
        np.testing.assert_array_equal(sample.target[2] > 0, inside)
        assert set(np.unique(sample.weight[inside])) <= {0.0, 1.0}
        assert set(np.unique(sample.weight[~inside])) <= {0.0, np.float32(0.05)}
        flow = sample.target[:2]
        assert np.abs(flow[:, ~inside]).max(initial=0.0) == 0.0


@pytest.mark.parametrize("side", [16, 20, 32, 48])
def test_scaled_labels_stay_aligned_with_the_scaled_window(side):
    labels = disks()
    region, (top, left) = labels_around(labels, cell_boxes(labels), (7, 11, side), 32)
    window = region[top : top + 32, left : left + 32] > 0
    positions = np.floor((np.arange(32) + 0.5) * side / 32).astype(int)
    expected = labels[7 : 7 + side, 11 : 11 + side][np.ix_(positions, positions)] > 0
    np.testing.assert_array_equal(window, expected)


def test_scaled_targets_point_to_the_same_centres():
    """Zoomed by 2, the flow at a pixel has the direction it had before (up to the grid)."""
    labels = disks((96, 96))
    boxes = cell_boxes(labels)
    region, (top, left) = labels_around(labels, boxes, (10, 10, 32), 64)
    zoomed = masks_to_flows(region)[:, top : top + 64, left : left + 64]
    plain = masks_to_flows(labels)[:, 10:42, 10:42]
    big = plain.repeat(2, axis=1).repeat(2, axis=2)
    both = (np.hypot(*zoomed) > 0.5) & (np.hypot(*big) > 0.5)
    assert np.mean((zoomed * big).sum(axis=0)[both] > 0.9) > 0.9


def test_empty_crop_has_zero_targets_and_full_weight():
    sample = crop_dataset(config()).cut(prepared(np.zeros((40, 40), np.int32)), sample_rng(0, 0))
    assert not sample.target.any()
    assert (sample.weight == 1.0).all()


def test_cell_focus_shows_the_rare_large_cell_more_often():
    labels = np.zeros((400, 400), np.int32)
    for number in range(60):
        y, x = divmod(number, 10)
        labels[20 + 12 * y : 26 + 12 * y, 20 + 12 * x : 26 + 12 * x] = number + 1
    labels[300:380, 300:380] = 61

    def share(focus: float) -> float:
        dataset = crop_dataset(config(augment={"cell_focus": focus}))
        crops = [dataset.cut(prepared(labels), sample_rng(0, n)) for n in range(120)]
        return float(np.mean([c.target[2].mean() > 0.4 for c in crops]))

    assert share(1.0) > 2 * share(0.0)


def test_brightness_acts_on_the_gray_value_the_backbone_sees():
    z = np.linspace(-2, 2, 9, dtype=np.float32)
    np.testing.assert_allclose(GRAY_MEAN + GRAY_STD * brighten(z, 1.05), 1.05 * (GRAY_MEAN + GRAY_STD * z), atol=1e-6)


def write_pair(folder, image: np.ndarray, labels: np.ndarray, stem: str = "a") -> LabelledItem:
    (folder / "i").mkdir(exist_ok=True)
    (folder / "m").mkdir(exist_ok=True)
    write_labels(folder / "i" / f"{stem}.tif", image)
    write_labels(folder / "m" / f"{stem}.tif", labels)
    info = DatasetInfo(name="set")
    return LabelledItem(
        stem=stem,
        image=folder / "i" / f"{stem}.tif",
        mask=folder / "m" / f"{stem}.tif",
        ignore=None,
        dataset=info,
        split="train",
    )


def test_small_images_are_enlarged_and_truth_keeps_its_size(tmp_path):
    labels = np.zeros((20, 30), np.int32)
    labels[4:10, 5:12] = 700
    item = write_pair(tmp_path, (labels > 0) * 200 + 10, labels)
    image = prepare(item, config(), 1.0)
    assert image.image.shape == (32, 48) and image.labels.shape == (32, 48)
    assert image.truth.shape == (20, 30) and image.truth.max() == 1


def test_images_of_large_cells_are_shrunk_to_the_largest_diameter(tmp_path):
    yy, xx = np.mgrid[:200, :300]
    labels = ((yy - 100) ** 2 + (xx - 90) ** 2 <= 60**2) + 2 * ((yy - 100) ** 2 + (xx - 220) ** 2 <= 60**2)
    item = write_pair(tmp_path, (labels > 0) * 200 + 10, labels.astype(np.int32))
    image = prepare(item, config(data={"max_diameter": 40}), 1.0)
    assert image.image.shape == image.labels.shape == (67, 100)  # a third: 120 px become 40
    areas = np.bincount(image.labels.ravel())[1:]
    assert 2 * np.sqrt(areas / np.pi) == pytest.approx([40, 40], rel=0.02)
    assert image.truth.shape == (200, 300) and image.rescaled == pytest.approx(1 / 3, rel=0.01)
    small = prepare(item, config(data={"max_diameter": 130}), 1.0)
    assert small.image.shape == (200, 300) and small.rescaled == 1  # never enlarged


def test_images_of_small_cells_are_enlarged_to_the_smallest_diameter(tmp_path):
    yy, xx = np.mgrid[:60, :90]
    labels = ((yy - 30) ** 2 + (xx - 25) ** 2 <= 5**2) + 2 * ((yy - 30) ** 2 + (xx - 65) ** 2 <= 5**2)
    item = write_pair(tmp_path, (labels > 0) * 200 + 10, labels.astype(np.int32))
    limits = {"min_diameter": 20, "max_diameter": 28}
    image = prepare(item, config(data=limits), 1.0)
    areas = np.bincount(image.labels.ravel())[1:]
    assert 2 * np.sqrt(areas / np.pi) == pytest.approx([20, 20], rel=0.02)
    assert image.truth.shape == (60, 90) and image.rescaled == pytest.approx(2, rel=0.03)
    assert prepare(item, config(data={"min_diameter": 90}), 1.0).rescaled == pytest.approx(4)  # at most
    assert prepare(item, config(data={"min_diameter": 8}), 1.0).rescaled == 1


def test_diameters_are_refused_where_labels_are_classes():
    with pytest.raises(ConfigError, match="max_diameter"):
        config(data={"max_diameter": 40}, objective={"kind": "semantic"})
    with pytest.raises(ConfigError, match=r"data.min_diameter: objective.kind=semantic"):
        config(data={"min_diameter": 10}, objective={"kind": "semantic"})


def test_a_smallest_diameter_above_the_largest_is_refused():
    with pytest.raises(ConfigError, match=r"data.min_diameter: must be at most max_diameter=40, got 50"):
        config(data={"min_diameter": 50, "max_diameter": 40})


def test_size_mismatch_is_named_and_skipped_once(tmp_path):
    good = write_pair(tmp_path, np.arange(40 * 40).reshape(40, 40) % 251, np.ones((40, 40), np.int32), "good")
    bad = write_pair(tmp_path, np.zeros((40, 40), np.int32), np.ones((38, 40), np.int32), "bad")
    with pytest.raises(DataError, match=r"mask is 40 × 38 px but its image .* is 40 × 40"):
        prepare(bad, config(), 1.0)
    said: list[str] = []
    store = ImageStore([bad, good], config(), said.append)
    dataset = CropDataset(store, SampleOrder([0, 0], "proportional", 0), build_objective(config().objective), config())
    assert all(dataset(n).target[2].all() for n in range(6))
    assert len(said) == 1 and "skipped set/bad" in said[0]


def test_memory_budget_changes_nothing_but_memory(tmp_path):
    item = write_pair(tmp_path, np.arange(40 * 40).reshape(40, 40) % 251, np.ones((40, 40), np.int32))
    samples = []
    for budget in (0.0, 8.0):
        cfg = config(data={"cache_gb": budget})
        store = ImageStore([item], cfg, print)
        dataset = CropDataset(store, SampleOrder([0], "proportional", 0), build_objective(cfg.objective), cfg)
        samples.append(dataset(3))
    np.testing.assert_array_equal(samples[0].image, samples[1].image)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_small_image_of_a_known_scale_is_mirrored_to_a_crop_and_the_rest_is_ignored(tmp_path, ignored):
    rng = np.random.default_rng(3)
    image, labels = rng.integers(0, 255, (12, 50), dtype=np.uint8), np.zeros((12, 50), np.int32)
    labels[2:8, 4:10], labels[3:9, 40:46] = 3, 7
    files = {kind: tmp_path / f"{kind}.tif" for kind in ("image", "mask", "ignore")}
    write_labels(files["image"], image)
    write_labels(files["mask"], labels)
    write_labels(files["ignore"], (np.arange(50) < 2).astype(np.uint8) * np.ones((12, 1), np.uint8))
    item = LabelledItem(
        image=files["image"],
        mask=files["mask"],
        ignore=files["ignore"] if ignored else None,
        stem="image",
        split="train",
        dataset=DatasetInfo(name="cells"),
    )
    diameter = float(2 * np.sqrt(36 / np.pi))
    cfg = config(data={"min_diameter": 2 * diameter, "max_diameter": 2 * diameter}, preprocess={"clahe": False})
    prepared = prepare(item, cfg, 1.0)
    assert prepared.rescaled == pytest.approx(2) and prepared.placement.shown == (24, 100)
    assert prepared.image.shape == prepared.labels.shape == (32, 100)
    np.testing.assert_array_equal(prepared.image[24:], prepared.image[16:24][::-1])
    assert prepared.ignore is not None and prepared.ignore[24:].all() and not prepared.labels[24:].any()
    assert prepared.ignore[:24].any() == ignored and not prepared.ignore[:24, 4:].any()
    weights = truth_weights(prepared)
    assert weights.shape == labels.shape and weights[:, 2:].all() and weights[:, :2].any() != ignored
    sample = crop_dataset(cfg).cut(prepared, np.random.default_rng(0))
    assert sample.image.shape == (32, 32) and sample.weight.mean() <= 0.8
