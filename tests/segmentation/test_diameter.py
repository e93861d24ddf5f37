"""`diameter=auto` finds the size of the cells with a network that knows one size, and says when it does not."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from torch import nn

from dinocell.core.errors import ConfigError
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane
from dinocell.images.gray.streamed import StreamedInput
from dinocell.models import ModelCard
from dinocell.models.training_record import CellDiameters, Training, TrainingData
from dinocell.objectives import ObjectiveConfig
from dinocell.objectives.flows.targets import masks_to_flows
from dinocell.predict.large.regions import WholeSource
from dinocell.segmentation import Segmenter, run
from dinocell.segmentation.diameter import Estimate

KNOWN = 20.0


class KnowsOneSize(nn.Module):
    """Exact flows of bright blobs of about the known diameter; noise for blobs of any other size."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.look(one[0].numpy()) for one in z]))

    def look(self, z: np.ndarray) -> np.ndarray:
        bright = z > (z.min() + z.max()) / 2
        labels, count = ndimage.label(bright)
        areas = np.bincount(labels.ravel())[1:] if count else np.zeros(0)
        # A pixel at a blob's rim weighs less the larger the blob is: half the cells are at least as large as this.
        diameter = 2 * np.sqrt(np.median(areas) / np.pi) if count else 0
        wrong = abs(np.log2(max(diameter, 0.1) / KNOWN))
        noise = np.random.default_rng(0).normal(size=(2, *z.shape)) * min(1.5 * wrong, 2)
        return np.concatenate([masks_to_flows(labels) + noise, bright[None]]).astype(np.float32)


def segmenter(*datasets: float) -> Segmenter:
    training = Training(diameter=KNOWN, datasets=tuple(TrainingData(diameter=value) for value in datasets))
    card = ModelCard(crop_size=128, preprocess=PreprocessConfig(clahe=False), training=training)
    return Segmenter(KnowsOneSize(), card, device="cpu", precision="float32")


def changed(model: Segmenter, **card: Any) -> Segmenter:
    """The segmenter, its card changed in place."""
    model.card = dataclasses.replace(model.card, **card)
    return model


def field(diameter: float, side: int = 0) -> np.ndarray:
    """Bright disks of one diameter, uint8."""
    side = side or int(min(900, max(150, 8 * diameter)))
    pitch = 1.7 * diameter
    y, x = np.mgrid[:side, :side]
    distance = np.hypot((y % pitch) - pitch / 2, (x % pitch) - pitch / 2)
    return np.where(distance <= diameter / 2, 200, 20).astype(np.uint8)


@pytest.mark.parametrize("diameter", [8, 14, 20, 33, 60, 110])
def test_the_diameter_of_disks_is_found(diameter: float) -> None:
    found = segmenter().estimate_diameter(WholeSource(preprocess_plane(field(diameter), PreprocessConfig(clahe=False))))
    assert found.diameter == pytest.approx(diameter, rel=0.12)
    assert found.scale == pytest.approx(KNOWN / diameter, rel=0.12)
    assert f"diameter auto: {found.diameter:.3g} px" in found.note.text


def test_sizes_between_those_of_the_data_sets_keep_their_scale() -> None:
    trained = segmenter(12, 30).card.training.diameters
    assert trained == CellDiameters(median=20, smallest=12, largest=30)
    assert [trained.scale_for(d) for d in (12, 25, 30)] == [1, 1, 1]
    assert trained.scale_for(60) == 0.5 and trained.scale_for(6) == 2
    found = segmenter(12, 30).estimate_diameter(WholeSource(preprocess_plane(field(25), PreprocessConfig(clahe=False))))
    assert found.scale == 1 and "image scale kept" in found.note.text


@pytest.mark.parametrize("kind", ["noise", "a pixel"])
def test_without_cells_the_scale_stays_and_that_is_said(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (140, 160)).astype(np.uint8)
    if kind == "a pixel":
        image = np.array([[1, 2]], np.uint8)
    result = segmenter().segment(image, diameter="auto")
    assert result.labels.shape == image.shape
    assert "diameter auto: not sure" in capsys.readouterr().err


def test_without_cells_the_scale_of_the_training_images_is_taken() -> None:
    datasets = tuple(TrainingData(diameter=20, scale=scale) for scale in (0.25, 0.5, 1.0))
    model = changed(segmenter(), training=Training(diameter=KNOWN, datasets=datasets))
    noise = np.random.default_rng(0).integers(0, 255, (140, 160)).astype(np.uint8)
    found = model.estimate_diameter(WholeSource(preprocess_plane(noise, PreprocessConfig(clahe=False))))
    assert found.diameter is None and found.scale == 0.5
    assert "not sure" in found.note.text and "scaled by 0.5, as in training" in found.note.text


def test_mirrored_copies_of_a_cell_are_no_cells() -> None:
    image = field(60, 180)[:, :120]  # two disks in all: their mirror images fill a window, and are not evidence
    found = segmenter().estimate_diameter(WholeSource(preprocess_plane(image, PreprocessConfig(clahe=False))))
    assert found.cells in (1, 2)
    assert found.diameter == pytest.approx(60, rel=0.12)


@pytest.mark.parametrize("side", [30, 70])
def test_a_single_cell_that_fills_much_of_the_picture_is_enough(side: int) -> None:
    image = np.zeros((2 * side, 2 * side), np.uint8)
    image[side // 2 : side // 2 + side, side // 2 : side // 2 + side] = 200
    found = segmenter().estimate_diameter(WholeSource(preprocess_plane(image, PreprocessConfig(clahe=False))))
    assert found.cells == 1
    assert found.diameter == pytest.approx(2 * side / np.sqrt(np.pi), rel=0.12)


class Askew(KnowsOneSize):
    """Flows of blobs of the known size, turned by an angle that makes their mean squared error `error`."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.cosine = 1 - error / 2  # |turned - straight|² = 2 - 2 cos, of unit vectors

    def look(self, z: np.ndarray) -> np.ndarray:
        dy, dx, probability = super().look(z)
        sine = np.sqrt(1 - self.cosine**2)
        return np.stack([self.cosine * dy - sine * dx, sine * dy + self.cosine * dx, probability]).astype(np.float32)


def some_disks(count: int, height: int, width: int) -> np.ndarray:
    """`count` disks of the known diameter, each in a square of 25 px, from the corner of an image, uint8."""
    labels = np.zeros((height, width), np.uint8)
    for number in range(count):
        y, x = 25 * (number // 5), 25 * (number % 5)
        labels[y : y + 25, x : x + 25] = field(KNOWN, 34)[5:30, 5:30]
    return np.maximum(labels, 20)


def found_in(image: np.ndarray, error: float, far: float = 0.0) -> Estimate:
    """By flows off by `error`, in an image whose own scale is `far` factors of two above that of the training."""
    datasets = (TrainingData(diameter=KNOWN, scale=2.0**-far),)
    model = changed(segmenter(), training=Training(diameter=KNOWN, datasets=datasets))
    model.runner = dataclasses.replace(model.runner, network=Askew(error))
    return model.estimate_diameter(WholeSource(preprocess_plane(image, PreprocessConfig(clahe=False))))


@pytest.mark.parametrize(
    ("far", "believed", "warns"),  # above 0: enlarged, where specks pass for cells
    [(0.0, True, False), (-2.0, True, True), (-4.0, False, True), (1.0, True, True), (2.0, False, True)],
)
def test_cells_that_fit_badly_are_believed_near_the_usual_scale_only(far: float, believed: bool, warns: bool) -> None:
    found = found_in(some_disks(25, 125, 125), error=0.45, far=far)
    assert found.diameter == (pytest.approx(KNOWN, rel=0.02) if believed else None)
    assert found.note.severity == ("warning" if warns else "info")
    assert ("perhaps 20.1 px" in found.note.text) == (believed and warns)


@pytest.mark.parametrize("far", [-3.0, 3.0])
def test_one_cell_is_no_evidence_for_a_scale_far_from_the_usual_one(far: float) -> None:
    one, three = some_disks(1, 30, 30), some_disks(3, 30, 80)
    assert found_in(one, error=0.03, far=far).diameter is None  # a colony shrunk to a dot; a speck enlarged to a cell
    assert found_in(one, error=0.03, far=far / 2).diameter == pytest.approx(KNOWN, rel=0.02)
    assert found_in(three, error=0.03, far=far).diameter == pytest.approx(KNOWN, rel=0.02)


@pytest.mark.parametrize(
    ("cells", "size", "error", "believed"),
    [
        (1, 128, 0.1, False),
        (2, 128, 0.1, True),
        (2, 128, 0.35, False),
        (20, 128, 0.35, True),
        (2, 50, 0.35, True),  # they fill a quarter of the image, not a twentieth
        (1, 25, 0.35, True),  # half of it
    ],
)
def test_evidence_is_the_number_of_cells_and_what_they_cover(
    cells: int, size: int, error: float, believed: bool
) -> None:
    found = found_in(some_disks(cells, size, size), error)
    assert found.cells == cells
    assert found.diameter == (pytest.approx(KNOWN, rel=0.02) if believed else None)


@pytest.mark.parametrize("kind", ["scaled by", "image scale kept", "not sure"])
def test_only_a_scale_in_doubt_is_a_warning(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = field(50 if kind == "scaled by" else KNOWN, 400)
    if kind == "not sure":
        image = np.zeros((60, 60), np.uint8) + np.eye(60, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image)
    run([tmp_path / "a.tif"], tmp_path / "out", segmenter(12, 30), diameter="auto")
    out, err = capsys.readouterr()
    said, silent = (err, out) if kind == "not sure" else (out, err)
    assert "diameter auto" in said and kind in said and "diameter auto" not in silent


@pytest.mark.parametrize("large", [False, True])
def test_auto_end_to_end(large: bool, capsys: pytest.CaptureFixture[str]) -> None:
    image = field(50, 400)
    model = segmenter()
    model.large_pixels = 1000 if large else model.large_pixels
    found = model.segment(image, diameter="auto")
    truth, count = ndimage.label(image > 100)
    assert found.labels.shape == image.shape and isinstance(found.labels, np.memmap) == large
    assert abs(found.count - count) <= 0.1 * count
    assert ((found.labels > 0) == (truth > 0)).mean() > 0.93
    assert "diameter auto: 5" in capsys.readouterr().out or any("diameter auto" in note.text for note in found.notes)


def test_models_of_rescaled_images_estimate_unless_told_otherwise() -> None:
    image, model = field(50, 400), changed(segmenter(), rescale="auto")
    asked = model.segment(image, diameter="auto").labels
    assert np.array_equal(model.segment(image).labels, asked)
    assert np.array_equal(model.segment(image, pixel_size=0.5).labels, asked)  # for areas in µm² only
    own = model.segment(image, diameter="own").labels
    assert not np.array_equal(own, asked)
    changed(model, rescale="own")
    assert np.array_equal(model.segment(image).labels, own)


@pytest.mark.parametrize("shape", [(150, 400), (130, 600)])
def test_small_pictures_keep_the_scale_that_was_found(shape: tuple[int, int]) -> None:
    """Disks of 80 px in a picture 32 or 38 px high at the model's scale; enlarged to a window, they go wrong."""
    image, model = field(80, 600)[: shape[0], : shape[1]], changed(segmenter(), rescale="auto")
    truth, count = ndimage.label(image > 100)
    found = model.segment(image, diameter=80)
    assert found.labels.shape == image.shape and found.count == count
    assert ((found.labels > 0) == (truth > 0)).mean() > 0.95
    changed(model, rescale="own")
    assert model.segment(image, diameter=80).count != count


def test_smallest_cell_is_measured_where_the_model_sees_it() -> None:
    """A cell of 50 px has 1963 px; shown to the model as one of 20 px, 314."""
    image, model = field(50, 400), segmenter()
    counts = {}
    for least in (250, 400):
        model.objective = dataclasses.replace(model.objective, min_size=least)
        counts[least] = model.segment(image, diameter=50).count
    assert counts[250] > 9 and counts[400] == 0
    assert model.segment(image, diameter=50, min_size=400).count > 9  # the user's is in the image's pixels


class ShortFlows(KnowsOneSize):
    """As an undertrained network: flows of the right direction, a third as long."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        maps = super().forward(crops)
        return torch.cat([0.3 * maps[:, :2], maps[:, 2:]], dim=1)


def test_large_cells_with_short_flows_come_back_whole() -> None:
    """80 px to the centre are 270 steps of 0.3 px; cut off after 200, cells would come out in stripes."""
    image = field(160, 900)
    model = segmenter()
    model.runner = dataclasses.replace(model.runner, network=ShortFlows())
    model.objective = dataclasses.replace(model.objective, flow_error=0.0)
    found = model.segment(image, diameter=160)
    areas = np.sort(np.bincount(found.labels.ravel())[1:])[-9:]  # the nine that the image does not cut
    assert areas == pytest.approx(np.full(9, np.pi * 80**2), rel=0.03)


class SeesDots(KnowsOneSize):
    """Fair flows of disks of the known size; in all else it sees perfect cells of 6 px, as a network sees texture."""

    def look(self, z: np.ndarray) -> np.ndarray:
        disks, count = ndimage.label(z > (z.min() + z.max()) / 2)
        areas = np.bincount(disks.ravel())[1:] if count else np.zeros(1)
        if 14 < 2 * np.sqrt(np.median(areas) / np.pi) < 28:
            noise = np.random.default_rng(0).normal(size=(2, *z.shape)) * 0.3
            return np.concatenate([masks_to_flows(disks) + noise, disks[None] > 0]).astype(np.float32)
        dots = ndimage.label(field(6, z.shape[0]) > 100)[0]
        return np.concatenate([masks_to_flows(dots), dots[None] > 0]).astype(np.float32)


@pytest.mark.parametrize("diameter", [14, 40, 80])
def test_cells_of_a_size_that_the_model_does_not_know_are_not_believed(diameter: float) -> None:
    model = segmenter()
    model.runner = dataclasses.replace(model.runner, network=SeesDots())
    picture = WholeSource(preprocess_plane(field(diameter), PreprocessConfig(clahe=False)))
    assert model.estimate_diameter(picture).diameter == pytest.approx(diameter, rel=0.1)


def test_sizes_are_known_between_the_bounds_of_the_recipe() -> None:
    training = Training(diameter=24.0, datasets=(TrainingData(diameter=24.0),))
    alone, bounded = training.diameters, dataclasses.replace(training, min_diameter=20.0, max_diameter=28.0).diameters
    assert alone is not None and bounded is not None
    assert (alone.smallest, alone.largest) == (24, 24) and (bounded.smallest, bounded.largest) == (20, 28)
    assert [bounded.scale_for(diameter) for diameter in (10, 25, 56)] == [2, 1, 0.5]
    assert dataclasses.replace(training, max_diameter=224.0).diameters == alone  # says nothing of the other end


def test_streamed_pictures_give_the_same_estimate() -> None:
    config, image = PreprocessConfig(clahe=False), field(33)
    pictures = (WholeSource(preprocess_plane(image, config)), StreamedInput(image, config))
    first, second = (segmenter().estimate_diameter(picture) for picture in pictures)
    assert first.diameter == pytest.approx(second.diameter, rel=1e-3)


def test_constant_images_have_no_diameter() -> None:
    result = segmenter().segment(np.full((60, 70), 3, np.uint8), diameter="auto")
    assert result.count == 0


def test_what_auto_needs_is_said() -> None:
    model = changed(segmenter(), training=Training())
    with pytest.raises(ConfigError, match="does not record the diameter"):
        model.segment(field(20), diameter="auto")
    card = ModelCard(crop_size=64, objective=ObjectiveConfig(kind="semantic"), training=Training(diameter=20))
    with pytest.raises(ConfigError, match="does not predict flows"):
        Segmenter(nn.Identity(), card, device="cpu").segment(field(20), diameter="auto")
