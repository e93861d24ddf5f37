"""A model on a prepared dataset: every image is segmented, kept and scored; what fails is named."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dinocell.core.errors import DataError
from dinocell.evaluation import evaluate_model, predict, score_folders, scoring
from dinocell.labels.files import read_labels
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.segmentation import load_model


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three test images of bright discs on dark ground, and their labels."""
    rng = np.random.default_rng(0)
    for stem in "abc":
        labels = np.zeros((80, 90), np.uint16)
        for index, centre in enumerate([(18, 20), (50, 25), (60, 65)], start=1):
            cv2.circle(labels, centre, 9, index, -1)
        image = np.where(labels > 0, 180, 40) + rng.integers(0, 12, labels.shape)
        for kind, array in (("images", image.astype(np.uint8)), ("masks", labels)):
            folder = tmp_path / "discs" / "test" / kind
            folder.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / f"{stem}.png"), array)
    return tmp_path / "discs"


class Oracle:
    """Answers with the truth of the image asked for, except for what it is told to fail on."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.asked: list[str] = []

    def segment(self, image: Path) -> SimpleNamespace:
        self.asked.append(image.stem)
        if image.stem == self.fails:
            raise DataError(f"{image.name}: cannot be read")
        return SimpleNamespace(labels=read_labels(image.parent.parent / "masks" / image.name))


def test_perfect_model_beside_the_baseline(dataset: Path, tmp_path: Path) -> None:
    summary = evaluate_model(Oracle(), dataset, out=tmp_path / "out", with_baseline=True)
    assert summary["images"] == 3
    assert set(summary["metrics"].values()) == {1.0}
    baseline = summary["predictions"]["Otsu + watershed"]["metrics"]
    assert 0.8 < baseline["MMA"] < 1  # discs on dark ground are what Otsu's threshold is for
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.json",
        "per_image.csv",
        "predictions",
        "report.html",
    ]
    kept = score_folders(
        dataset / "test" / "masks", {"otsu": tmp_path / "out/predictions/Otsu___watershed"}, None, None
    )
    assert kept["problems"] == []
    assert kept["metrics"] == baseline


def test_an_image_that_fails_is_named_and_the_others_count(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "write_report", lambda *_: None)
    summary = evaluate_model(Oracle(fails="b"), dataset, out=tmp_path / "out")
    assert (summary["images"], summary["images_with_labels"]) == (2, 3)
    assert summary["problems"] == ["model: b.png: b.png: cannot be read"]


def test_a_model_folder_is_loaded_and_named_after_its_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "write_report", lambda *_: None)
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1))
    network = SegmentationModel(backbone, DecoderConfig(neck_width=16), 3, 64, 64)
    folder = save_model(tmp_path / "tiny" / "model", network, ModelCard(crop_size=64))
    for given in (folder, tmp_path / "tiny"):
        summary = evaluate_model(given, dataset, out=tmp_path / "scores" / "tiny.json", device="cpu")
        assert (summary["images"], list(summary["predictions"])) == (3, ["tiny"])
    kept = read_labels(tmp_path / "scores" / "predictions" / "tiny" / "discs" / "a_labels.tif")
    assert kept.shape == (80, 90)
    assert (tmp_path / "scores" / "tiny.json").is_file()


def test_views_are_averaged_and_kept_apart(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "write_report", lambda *_: None)
    one, four = (evaluate_model("cells", dataset, out=tmp_path, device="cpu", views=views) for views in (None, 4))
    assert (list(one["predictions"]), list(four["predictions"])) == (["cells"], ["cells, 4 views"])
    labels = [
        read_labels(tmp_path / "predictions" / name / "discs" / "a_labels.tif") for name in ("cells", "cells__4_views")
    ]
    expected = load_model("cells", device="cpu", views=4).segment(dataset / "test/images/a.png").labels
    np.testing.assert_array_equal(labels[1], expected)
    assert labels[0].any() and not np.array_equal(*labels)


def test_shares_of_an_array_are_scored_as_one_run(dataset: Path, tmp_path: Path) -> None:
    one = evaluate_model(Oracle(fails="b"), dataset, out=tmp_path / "one", with_baseline=True)
    model = Oracle(fails="b")
    said = [
        line
        for index in range(2)
        for line in predict(model, dataset, out=tmp_path / "many", with_baseline=True, shard=(index, 2), keep_since=0.0)
    ]
    assert said == ["model: b.png: b.png: cannot be read"]
    only_failed = Oracle(fails="b")
    many = evaluate_model(only_failed, dataset, out=tmp_path / "many", with_baseline=True, keep_since=0.0)
    assert only_failed.asked == ["b"]
    assert {key: one[key] for key in ("images", "metrics", "problems")} == {
        key: many[key] for key in ("images", "metrics", "problems")
    }
    assert (tmp_path / "one/per_image.csv").read_text() == (tmp_path / "many/per_image.csv").read_text()
