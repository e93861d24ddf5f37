"""Placement: sizes, aspect, the way there and back, and one rule for training, segmentation and large images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dinocell.datasets.labelled import DatasetInfo, LabelledItem
from dinocell.finetune import FinetuneConfig
from dinocell.finetune.data.image_store import ImageStore
from dinocell.images.planes import iter_planes, open_image
from dinocell.labels.files import write_labels
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig
from dinocell.predict.large.regions import WholeSource
from dinocell.predict.placement import Fit, Placement
from dinocell.predict.runner import Runner
from dinocell.segmentation import Segmenter, SegmentOptions

SIDES = st.integers(1, 300)


class Pointwise(nn.Module):
    """Per-pixel maps (z, −2z, 1), so that the result must equal the image itself."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, -2 * z, torch.ones_like(z)], dim=1)


@given(SIDES, SIDES, st.integers(1, 200))
def test_small_images_are_enlarged_to_the_window_with_their_aspect(height: int, width: int, window: int) -> None:
    place = Placement.of((height, width), window=window)
    factor = window / min(height, width)
    if factor <= 1:
        assert place.shown == place.frame == (height, width)
    elif factor <= 8:
        assert min(place.shown) == window and place.frame == place.shown
        assert abs(max(place.shown) - max(height, width) * factor) <= 0.5
    else:
        assert place.shown == (8 * height, 8 * width), "at most 8 times"
        assert place.frame == (max(8 * height, window), max(8 * width, window))


@pytest.mark.parametrize(
    ("size", "frame"), [((100, 150), (512, 768)), ((512, 100), (2621, 512)), ((2, 10_000), (512, 80_000))]
)
def test_frames_of_small_images(size: tuple[int, int], frame: tuple[int, int]) -> None:
    assert Placement.of(size, window=512).image(np.zeros(size, np.float32)).shape == frame


def test_an_image_that_fits_is_not_copied() -> None:
    z = np.zeros((512, 600), np.float32)
    assert Placement.of((512, 600), window=512).image(z) is z


@pytest.mark.parametrize("size", [(20, 30), (64, 20), (1, 1), (3, 200), (7, 64), (90, 130)])
@pytest.mark.parametrize("rescales", [False, True])
def test_maps_come_back_at_the_size_of_the_image(size: tuple[int, int], rescales: bool) -> None:
    z = np.linspace(-1, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    place = Placement.of(size, window=64, rescales=rescales)
    maps = place.undo(Runner(network=Pointwise(), window=64, overlap=16).maps(place.image(z)))
    assert maps.shape == (3, *size)
    np.testing.assert_allclose(maps[2], 1, atol=1e-6)
    assert np.abs(maps[0] - z).mean() < 0.1 * (z.std() + 0.1)


def test_a_rescaling_model_is_shown_the_scale_and_a_mirror_image_around_it() -> None:
    z = np.random.default_rng(0).normal(size=(40, 200)).astype(np.float32)
    place = Placement.of((40, 200), window=64, scale=0.5, rescales=True)
    frame = place.image(z)
    assert place.shown == place.scaled == (20, 100) and frame.shape == (64, 100)
    np.testing.assert_array_equal(frame[20:40], frame[:20][::-1])
    np.testing.assert_allclose(frame[:20], z.reshape(20, 2, 100, 2).mean((1, 3)), atol=1e-6)


def test_labels_lie_on_the_image_and_nothing_outside_counts() -> None:
    labels = np.arange(1, 1 + 6 * 40, dtype=np.int32).reshape(6, 40)
    mask = labels == 1
    place = Placement.of((6, 40), window=64)
    seen = place.labels(labels)
    assert seen.shape == place.frame == (64, 320) and not seen[48:].any() and (seen[:48] > 0).all()
    np.testing.assert_array_equal(place.undo_labels(seen), labels)
    ignored = place.mask(mask)
    assert ignored is not None and ignored[48:].all() and ignored[:48].sum() == 64
    np.testing.assert_array_equal(place.mask(None), np.arange(64)[:, None].repeat(320, 1) >= 48)
    assert Placement.of((64, 70), window=64).mask(None) is None


@pytest.mark.parametrize("size", [(20, 30), (5, 90), (70, 100), (200, 90), (20, 700)])
@pytest.mark.parametrize("scale", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("rescales", [False, True])
def test_an_image_read_by_region_has_the_same_frame_and_way_back(
    size: tuple[int, int], scale: float, rescales: bool
) -> None:
    z = np.random.default_rng(1).normal(size=size).astype(np.float32)
    place = Placement.of(size, window=64, scale=scale, rescales=rescales)
    source, frame = place.source(WholeSource(z)), place.image(z)
    assert source.size == frame.shape == place.frame
    height, width = frame.shape
    for rows, columns in ((slice(0, height), slice(0, width)), (slice(height - 50, height - 3), slice(7, width - 9))):
        np.testing.assert_allclose(source.region(rows, columns), frame[rows, columns], atol=2e-4)
    maps = np.random.default_rng(2).normal(size=(2, *place.frame)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(place.undo_lazily(maps)), place.undo(maps), atol=1e-4)


@pytest.mark.parametrize("size", [(40, 200), (100, 90), (600, 530)])
@pytest.mark.parametrize("fit", ["tile", "resize", "pad"])
def test_training_and_segmentation_see_the_same_array(size: tuple[int, int], fit: Fit, tmp_path: Path) -> None:
    """Also where the short side is below an eighth of the crop: enlarged 8 times, then filled."""
    image = np.random.default_rng(2).integers(0, 255, size).astype(np.uint8)
    labels = np.zeros(size, np.int32)
    labels[5:20, 5:20] = 1
    write_labels(tmp_path / "image.tif", image)
    write_labels(tmp_path / "mask.tif", labels)
    item = LabelledItem(
        stem="image",
        image=tmp_path / "image.tif",
        mask=tmp_path / "mask.tif",
        ignore=None,
        dataset=DatasetInfo(name="set"),
        split="train",
    )
    objective = ObjectiveConfig(kind="flows" if fit == "tile" else "semantic")
    config = FinetuneConfig(crop_size=512, input_size=512, fit=fit, objective=objective)
    trained = ImageStore([item], config, print).get(0)
    segmenter = Segmenter(Pointwise(), ModelCard(crop_size=512, fit=fit, objective=objective), device="cpu")
    job, z = segmenter.prepare(next(iter_planes(open_image(image))), SegmentOptions())
    assert trained is not None and z is not None
    np.testing.assert_array_equal(trained.image, z)
    assert trained.placement == job.placement
    if size == (40, 200):
        shown = {"tile": (320, 1600), "resize": (512, 512), "pad": (102, 512)}[fit]
        assert job.placement.shown == shown and job.placement.frame == (512, max(512, shown[1]))
    assert job.placement.undo(np.stack([z])).shape == (1, *size)
