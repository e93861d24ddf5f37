"""resize | pad | tile: what the network sees of an image, and maps that come back at the image's own size."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.core.config import from_dict, load
from dinocell.core.errors import ConfigError
from dinocell.datasets.labelled import DatasetInfo, LabelledItem
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.data.image_store import prepare, truth_weights
from dinocell.predict.placement import Placement
from dinocell.segmentation import Segmenter
from dinocell.training.progress import read_metrics

RECIPE = Path(__file__).parents[2] / "finetune" / "configs" / "dinobloom_bccd_semantic.yaml"


def scene(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(size, np.int32)
    cv2.circle(labels, (size[1] // 3, size[0] // 2), min(size) // 4, 1, -1)
    image = (labels > 0) * 2.0 - 1.0 + 0.01 * np.random.default_rng(0).standard_normal(size)
    return image.astype(np.float32), labels


@pytest.mark.parametrize("fit", ["resize", "pad"])
@pytest.mark.parametrize("size", [(100, 160), (160, 100), (64, 64), (30, 20)])
def test_maps_of_a_fitted_image_lie_on_the_image_again(fit, size):
    image, labels = scene(size)
    place = Placement.of(size, window=64, fit=fit)
    fitted, seen = place.image(image), place.labels(labels)
    assert fitted.shape == seen.shape == (64, 64)
    outside = place.mask(None)
    assert (outside is None) == (fit == "resize" or size[0] == size[1])
    if outside is not None:  # the aspect is kept: the content covers the ratio of the sides
        assert (~outside).mean() == pytest.approx(min(size) / max(size), abs=0.02)
        assert not fitted[outside].any() and not seen[outside].any()
    back = place.undo(seen[None].astype(np.float32))[0] > 0.5
    both = (back & (labels > 0)).sum() / (back | (labels > 0)).sum()
    assert both > 0.85 and back.shape == size


def test_padding_has_no_weight_and_truth_keeps_its_size(tmp_path):
    labels = scene((40, 80))[1]
    for name, array in (("image", 50 + 100 * labels), ("mask", labels)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), array.astype(np.uint8))
    item = LabelledItem(
        stem="a",
        image=tmp_path / "image.png",
        mask=tmp_path / "mask.png",
        ignore=None,
        dataset=DatasetInfo(name="set"),
        split="train",
    )
    config = semantic("pad")
    prepared = prepare(item, config, 1.0)
    assert prepared.image.shape == (32, 32) and prepared.truth.shape == (40, 80)
    assert prepared.ignore is not None and prepared.ignore.mean() == 0.5
    weights = truth_weights(prepared)
    assert weights.shape == (40, 80) and (weights == 1).all()


def semantic(fit: str, **extra: object) -> FinetuneConfig:
    return from_dict(
        FinetuneConfig,
        {
            "device": "cpu",
            "precision": "float32",
            "crop_size": 32,
            "input_size": 32,
            "overlap": 8,
            "fit": fit,
            "data": {"workers": 0, "check_images": 0},
            "backbone": {"arch": "vit_tiny", "depth": 2, "in_channels": 3, "layerscale_init": 1.0},
            "decoder": {"kind": "bilinear", "neck_width": 32, "detail_width": 8},
            "objective": {"kind": "semantic"},
            "augment": {"invert": 0.0},
            "train": {"steps": 25, "batch_size": 4, "lr": 2e-3, "log_every": 10, "clip_gradient": 1.0},
            "validate": {"times": 0, "monitor": "Dice"},
            **extra,
        },
    )


@pytest.mark.parametrize("fit", ["resize", "pad", "tile"])
def test_each_mode_learns_and_its_model_folder_segments_alike(disks_dataset, tmp_path, fit):
    out = run(semantic(fit, output_dir=str(tmp_path), data={"root": [str(disks_dataset)], "workers": 0})).folder
    meta = json.loads((out / "model" / "config.json").read_text())
    assert meta["fit"] == fit and meta["validation"]["mean"]["Dice"] > 0.8
    for row in read_metrics(out / "metrics.jsonl", "train"):
        assert row["entropy"] + row["dice"] == pytest.approx(row["loss"], rel=1e-5)
    page = (out / "report.html").read_text()
    assert "Classes by pixel" in page and "background" in page and "Decoding" in page
    segmenter = Segmenter(out / "model", device="cpu", precision="float32")
    dice = []
    for number in range(2):
        labels = segmenter.segment(disks_dataset / "val" / "images" / f"{number}.png").labels
        truth = cv2.imread(str(disks_dataset / "val" / "masks" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        dice.append(2 * ((labels > 0) & (truth > 0)).sum() / ((labels > 0).sum() + (truth > 0).sum()))
    # Inference sees images as validation saw them: the same scores.
    assert np.mean(dice) == pytest.approx(meta["validation"]["mean"]["Dice"], abs=1e-6)


def test_classes_are_learnt_and_reported_each(disks_dataset, tmp_path):
    """Three classes: background, and cells left and right of the middle drawn with different gray values."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
            for path in sorted((disks_dataset / split / "masks").iterdir()):
                labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                classes = (labels > 0) * (1 + (np.arange(labels.shape[1]) >= labels.shape[1] // 2))
                drawn = classes if kind == "masks" else np.array([120, 10, 230])[classes]
                cv2.imwrite(str(tmp_path / split / kind / path.name), drawn.astype(np.uint8))
    config = semantic("tile", output_dir=str(tmp_path / "run"), objective={"kind": "semantic", "classes": 3})
    data = {"root": [str(tmp_path)], "workers": 0, "check_images": 0}
    train = replace(config.train, steps=50)
    config = replace(config, data=from_dict(type(config.data), data), train=train)
    page = (run(config).folder / "report.html").read_text()
    for name in ("class 0", "class 1", "class 2"):
        assert name in page
    pooled = re.findall(r"class [12]</td><td>pooled</td><td class=\"n\">[\d.]+</td><td class=\"n\">([\d.]+)", page)
    assert len(pooled) == 2 and all(float(dice) > 0.7 for dice in pooled)


def test_modes_that_change_the_scale_are_for_classes_only():
    with pytest.raises(ConfigError, match=r"resize is for objective\.kind=semantic"):
        from_dict(FinetuneConfig, {"fit": "resize"})
    for fit in ("tile", "resize", "pad"):
        assert load(FinetuneConfig, str(RECIPE), [f"fit={fit}"]).fit == fit
