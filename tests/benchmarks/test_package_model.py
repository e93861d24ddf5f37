"""benchmarks/package_model.py: what is stored was scored, the numbers are right, the words of a card are kept."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dinocell.core.errors import ConfigError
from dinocell.datasets.labelled import open_dataset
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.evaluation.baseline import otsu_watershed
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import macro_mean, pool, score_image
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.models.packaged import model_info
from dinocell.models.training_record import Training, TrainingData
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import load_model

CARD = """# Mine

Words on top.

## Training

Words of the training.

| labelled data | old |
|---|---|
| gone | 1 |

Words below the table.

## Scores on the test splits

old scores

## Where it fails

- Everywhere.
"""


@pytest.fixture(scope="module")
def tool(repository: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield importlib.import_module("package_model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {}
    for number, name in enumerate(("cells-a", "cells-b")):
        folder = tmp_path_factory.mktemp(name)
        write_sample(folder, n_unlabelled=0, n_train=1, n_val=1, n_test=5 if number else 2, size=64, seed=number)
        roots[name] = folder / "labelled"
        description = roots[name] / "dataset.yaml"
        description.write_text(f"name: {name}\nmodality: synthetic\nlicence: CC0-1.0\n", encoding="utf-8")
    return roots


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that has learnt nothing: its scores are low, but they must be right."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, in_channels=1, depth=1))
    decoder = DecoderConfig(kind="bilinear", neck_width=16, detail_width=8)
    model = SegmentationModel(backbone, decoder, channels=3, crop_size=64, input_size=64)
    datasets = (TrainingData(name="cells-a", licence="CC0-1.0", train_images=1),)
    training = Training(step=7, seed=3, datasets=datasets)
    objective = ObjectiveConfig(threshold=0.1, min_size=4)
    save_model(folder / "model", model, ModelCard(crop_size=64, overlap=16, objective=objective, training=training))
    rows = [{"step": 7, "split": "train", "seconds": 5400.0}]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def package(tool: Any, monkeypatch: pytest.MonkeyPatch, run: Path, out: Path, *more: object) -> None:
    line = [run, "--out", out, "--licence", "Apache-2.0", "--device", "cpu", "--work", out.parent / "work", *more]
    monkeypatch.setattr(sys, "argv", ["package_model.py", *map(str, line)])
    tool.main()


def test_the_stored_weights_are_scored_both_ways_and_named_as_such(
    tool: Any, run: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    package(tool, monkeypatch, run, out, "--test", *data.values())
    meta, model = json.loads((out / "config.json").read_text(encoding="utf-8")), load_model(out, device="cpu")
    assert meta["licence"] == "Apache-2.0"
    card = (out / "README.md").read_text(encoding="utf-8")
    for name, root in data.items():
        items = open_dataset(root, "test")
        rows = [score_image(read_labels(item.mask), model.segment(item.image).labels) for item in items]
        otsu = [score_image(read_labels(i.mask), otsu_watershed(to_gray(read_image(i.image)))) for i in items]
        place = meta["test"]["by_dataset" if name == "cells-a" else "not_trained_on"][name]
        assert place["MMA"] == pytest.approx(macro_mean(rows)["MMA"], abs=1e-4)
        for ours, theirs in ((macro_mean(rows), macro_mean(otsu)), (pool(rows).metrics(), pool(otsu).metrics())):
            shown = " | ".join([*(f"{ours[key]:.3f}" for key in ("MMA", "SEG", "DET", "AP50")), f"{theirs['MMA']:.3f}"])
            assert f"| {len(items)} | {shown} |" in card
    assert "cells-b (not trained on)" in card
    difference = macro_mean(rows)["MMA"] - macro_mean(otsu)["MMA"]  # of cells-b: two images have no interval
    told = "The model minus Otsu, mean over images, 95 % bootstrap interval: cells-b: MMA "
    assert f"{told}{difference:+.3f} (" in " ".join(card.split())
    assert meta["test"]["pooled"]["by_dataset"].keys() == {"cells-a"}
    assert "No better than Otsu + watershed: cells-a (MMA" in card
    assert "1.5 h, 7 steps" in card
    info = model_info(out)
    assert info.scored is not None and (info.dtype, info.card.licence, info.scored[0]) == ("F16", "Apache-2.0", "test")


def test_words_of_a_card_are_kept_and_scoring_is_not_repeated(
    tool: Any, run: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "README.md").write_text(CARD, encoding="utf-8")
    known = TrainingData(name="cells-a", modality="synthetic", licence="not this one")
    replace(ModelCard.read(run / "model"), training=Training(datasets=(known,))).write(out)
    package(tool, monkeypatch, run, out, "--test", data["cells-a"])
    first = (out / "README.md").read_text(encoding="utf-8")
    for words in ("Words on top.", "Words of the training.", "Words below the table.", "- Everywhere."):
        assert first.count(words) == 1
    assert "gone" not in first
    assert "old scores" not in first
    assert "| cells-a | synthetic | 1 | CC0-1.0 |  |" in first  # the modality is what the model in its place knew
    assert all(len(line) <= 120 for line in first.splitlines())
    headings = [line for line in first.splitlines() if line.startswith("## ")]
    assert headings == ["## Network and run", "## Training", "## Scores on the test splits", "## Where it fails"]
    monkeypatch.setattr(tool, "evaluate_model", lambda *_, **__: pytest.fail("scored twice"))
    package(tool, monkeypatch, run, out, "--test", data["cells-a"])
    assert (out / "README.md").read_text(encoding="utf-8") == first


def test_a_missing_test_split_is_told_before_anything_is_written(
    tool: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError):
        package(tool, monkeypatch, run, tmp_path / "mine", "--test", tmp_path / "absent")
    assert not (tmp_path / "mine").exists()
