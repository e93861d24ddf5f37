"""Images of other cell sizes are brought to the scale that the model knows: once, for every part of an adaptation."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dinocell.adapt.config import AdaptConfig, crop_side
from dinocell.adapt.image_scale import AsItIs, ImageScale, at_scale, images_scale
from dinocell.adapt.pseudo import write_pseudo_labels
from dinocell.cli.train import adapt
from dinocell.finetune.from_model import adopt
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.models import ModelCard
from dinocell.segmentation import Segmenter
from dinocell.segmentation.diameter import Estimate


@pytest.fixture(scope="module")
def rescaling(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as one that was trained on rescaled images."""
    folder = tmp_path_factory.mktemp("rescaling") / "model"
    shutil.copytree(model, folder)
    replace(ModelCard.read(folder), rescale="auto").write(folder)
    return folder


@pytest.fixture(scope="module")
def enlarged(unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unlabelled images at twice their size."""
    folder = tmp_path_factory.mktemp("enlarged")
    for path in sorted(unlabelled.iterdir()):
        image = cv2.resize(read_image(path).array, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / path.name), image)
    return folder


def config(images: Path, model: Path, out: Path, *more: str) -> AdaptConfig:
    out.mkdir()
    return adapt.parse([str(images), "--from", str(model), "--out", str(out), "--device=cpu", *more])


class Measuring(Segmenter):
    """Knows the size of bright disks, but is not sure of the first image it sees."""

    looks = 0

    def estimate_diameter(self, picture: Any, options: Any = None) -> Estimate:
        self.looks += 1
        if self.looks == 1:
            return Estimate(scale=3.0, diameter=None, cells=1)
        z = np.asarray(picture.region(slice(None), slice(None)))
        areas = cv2.connectedComponentsWithStats((z > 0.5 * z.max()).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
        diameter = float(np.median(2 * np.sqrt(areas / np.pi)))
        return Estimate(scale=1.0, diameter=diameter, cells=len(areas))


def test_the_scale_is_found_once_and_is_that_of_the_cells(
    enlarged: Path, unlabelled: Path, rescaling: Path, tmp_path: Path
) -> None:
    model = Measuring(rescaling, device="cpu")
    plain = images_scale(model, config(unlabelled, rescaling, tmp_path / "plain"))
    large = images_scale(model, config(enlarged, rescaling, tmp_path / "large"))
    assert plain.diameter == pytest.approx(20, abs=3)
    assert large.diameter == pytest.approx(2 * plain.diameter, rel=0.1)
    assert (plain.scale, large.scale) == (1, pytest.approx(0.5, rel=0.15))
    assert (plain.side, large.side) == (96, 192)
    assert model.looks == 12
    kept = adapt.parse([str(enlarged), "--from", str(rescaling), "--out", str(tmp_path / "large"), "--device=cpu"])
    assert images_scale(model, kept) == large
    assert model.looks == 12


def test_where_the_model_is_never_sure_the_scale_is_the_usual_one(
    unlabelled: Path, rescaling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(next(unlabelled.iterdir()), one)
    found = images_scale(Measuring(rescaling, device="cpu"), config(one, rescaling, tmp_path / "out"))
    assert (found.scale, found.diameter) == (1, None)
    assert "diameter=PX" in "".join(capsys.readouterr())


def test_a_size_that_is_given_is_taken_and_a_model_that_never_rescales_keeps_its_scale(
    enlarged: Path, rescaling: Path, model: Path, tmp_path: Path
) -> None:
    known = Segmenter(rescaling, device="cpu")
    diameter = known.card.training.diameter or 0
    given = images_scale(known, config(enlarged, rescaling, tmp_path / "a", f"diameter={4 * diameter}"))
    assert given.scale == pytest.approx(0.25, rel=0.02)
    assert images_scale(Segmenter(model, device="cpu"), config(enlarged, model, tmp_path / "b")).scale == 1


@pytest.mark.parametrize(("scale", "side"), [(0.5, 1000), (0.5, 130), (2.0, 1000), (0.25, 96)])
def test_crops_show_cells_at_the_models_scale(
    unlabelled: Path, rescaling: Path, tmp_path: Path, scale: float, side: int
) -> None:
    """Whatever is cut, the crop of stage 1 that shows cells one to one lies within its range of scales."""
    start = config(unlabelled, rescaling, tmp_path / "out")
    card = ModelCard.read(rescaling)
    changed = at_scale(start, ImageScale(scale=scale, diameter=20.0, side=side), card)
    assert changed.curate.size <= max(side, crop_side(card))
    if side == 1000:
        assert changed.curate.size == pytest.approx(crop_side(card) / scale, abs=1)
    augment = changed.pretrain.augment
    low, high = augment.global_scale
    assert low <= min((augment.global_size / (changed.curate.size * scale)) ** 2, 1) <= high
    assert replace(changed, curate=start.curate, pretrain=start.pretrain) == start


def test_the_models_own_labels_are_made_and_kept_at_its_scale(enlarged: Path, rescaling: Path, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    (crops / "crops").mkdir(parents=True)
    lines = ["crop,source,status"]
    for path in sorted(enlarged.iterdir()):
        shutil.copy(path, crops / "crops" / path.name)
        lines.append(f"crops/{path.name},{path.name},kept")
    (crops / "manifest.csv").write_text("\n".join(lines) + "\n")
    segmenter = Segmenter(rescaling, device="cpu")
    write_pseudo_labels(segmenter, crops, tmp_path / "pseudo", 0, scale=0.5)
    found = sorted((tmp_path / "pseudo").glob("*/images/*.png"))
    assert len(found) == 6
    for path in found:
        image = read_image(path).array
        assert image.shape == (96, 96)
        masks = read_labels(path.parent.parent / "masks" / path.name)
        np.testing.assert_array_equal(masks, AsItIs(segmenter).segment(image).labels)


def test_a_model_that_rescales_still_does_after_training(rescaling: Path, model: Path, tmp_path: Path) -> None:
    images, labelled = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.zeros((8, 8), np.uint8))
    labelled.mkdir()
    free = config(images, rescaling, tmp_path / "a")
    bound = config(images, rescaling, tmp_path / "b", "--labels", str(labelled))
    card = ModelCard.read(rescaling)
    limits, diameter = adopt(bound.finetune, card).data, card.training.diameter or 0
    assert limits.rescales and limits.min_diameter <= diameter <= limits.max_diameter
    assert free.finetune.data.rescales and free.finetune.data.at_model_scale
    assert adopt(free.finetune, card).data == free.finetune.data
    assert not adopt(config(images, model, tmp_path / "c").finetune, ModelCard.read(model)).data.rescales
