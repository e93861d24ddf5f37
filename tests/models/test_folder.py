"""Model folders: one reader and one writer of the card, one default per field, unknown values refused."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.finetune import FinetuneConfig
from dinocell.finetune.from_model import adopt
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.models.folder import load_model_folder
from dinocell.models.packaged import find_model
from dinocell.models.training_record import ScoreTable, Training, TrainingData
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import Segmenter

OWNERS = {
    "dinocell/models/folder.py",
    "dinocell/models/weights/export.py",  # Hugging Face's and timm's config.json, which describe a backbone alone
}
CARD_NAMES = ("meta", "card", "config")


def network(crop: int = 64) -> SegmentationModel:
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1))
    return SegmentationModel(backbone, DecoderConfig(neck_width=16), 3, crop, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", network(), ModelCard(crop_size=64))


def edit(folder: Path, **changes: Any) -> Path:
    """The folder with keys of config.json changed; None removes one, `a__b` is a key of a mapping."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
        place.pop(key, None)
        if value is not None:
            place[key] = value
    file.write_text(json.dumps(content))
    return folder


def test_the_packaged_model_has_a_card() -> None:
    card = ModelCard.read(find_model("cells"))
    assert (card.crop_size, card.overlap, card.views, card.fit, card.rescales) == (128, 32, 2, "tile", True)
    assert (card.backbone.arch, card.decoder.kind, card.channels) == ("vit_tiny", "bilinear", 3)
    assert card.training.diameters is not None
    assert (card.training.diameters.smallest, card.training.diameters.largest) == pytest.approx(
        (19.995, 28.006), abs=0.01
    )
    assert card.training.datasets[0].fully_annotated is True
    assert card.test.by_dataset["dsb2018_nuclei"]["MMA"] == 0.821
    assert (card.windows, card.preprocessed, card.enlargement) == ("spread", "image", "cubic-0.75")


def test_a_card_that_is_written_reads_back_the_same(tmp_path: Path) -> None:
    card = ModelCard(
        crop_size=64,
        overlap=5,
        views=4,
        rescale="auto",
        preprocess=PreprocessConfig(clahe=False),
        objective=ObjectiveConfig(kind="semantic"),
        training=Training(step=3, diameter=21.5, datasets=(TrainingData(name="a", train_images=2, diameter=20.0),)),
        validation=ScoreTable(mean={"MMA": 0.5, "loss": None}, tuning={"metric": "MMA"}),
        test=ScoreTable(mean={"MMA": 0.4}, other={"pooled": {"mean": {"MMA": 0.3}}}),
        licence="CC0-1.0",
        adaptation={"choice": "adapted"},
    ).of_network(network())
    card.write(tmp_path)
    assert ModelCard.read(tmp_path) == card
    assert json.loads((tmp_path / "config.json").read_text())["test"]["pooled"] == {"mean": {"MMA": 0.3}}


def test_keys_that_this_version_does_not_know_are_written_back(folder: Path, tmp_path: Path) -> None:
    edit(folder, author="A. Name", training__datasets=[{"name": "a", "stain": "DAPI"}], training__gpu="H200")
    loaded, card = load_model_folder(folder)
    again = json.loads((save_model(tmp_path / "again", loaded, card) / "config.json").read_text())
    assert again["author"] == "A. Name" and again["training"]["gpu"] == "H200"
    assert again["training"]["datasets"][0]["stain"] == "DAPI"


@pytest.mark.parametrize(("crop", "overlap"), [(64, 16), (128, 32), (1024, 128)])
def test_an_absent_overlap_is_the_same_for_training_and_segmentation(crop: int, overlap: int, tmp_path: Path) -> None:
    model = network(crop)
    edit(save_model(tmp_path, model, ModelCard(crop_size=crop)), overlap=None)
    card = ModelCard.read(tmp_path)
    assert adopt(FinetuneConfig(start=str(tmp_path)), card).overlap == overlap
    assert Segmenter(model, card, device="cpu").runner.overlap == overlap


def test_absent_keys_take_the_defaults(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    needed = ("crop_size", "input_size", "channels", "backbone", "decoder")
    (folder / "config.json").write_text(json.dumps({key: content[key] for key in needed}))
    assert ModelCard.read(folder) == ModelCard(crop_size=64).of_network(network())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "format: 2 is newer than this DINOCell, which reads 1"),
        ("windows", "every", "windows: unknown 'every'; known: spread"),
        ("preprocessed", "window", "preprocessed: unknown 'window'; known: image"),
        ("enlargement", "cubic-0.5", "enlargement: unknown 'cubic-0.5'; known: cubic-0.75"),
        ("fit", "crop", "fit: unknown 'crop'; known: tile, resize, pad"),
        ("rescale", True, "rescale: unknown True; known: own, auto"),
        ("views", 3, "views: 3; choose one of 1, 2, 4, 8"),
        ("overlap", 64, "overlap: must lie in 0…63 px"),
        ("overlap", "much", "overlap: must be a whole number, got 'much'"),
        ("crop_size", 0, "crop_size: must be at least 1, got 0"),
        ("training__diameter", "large", "training.diameter: must be a number, got 'large'"),
        ("training__diameter", -3, "training.diameter: must be a length of 0 or more, is -3"),
        ("training__datasets", [{"name": 7}], r"training.datasets\[0\].name: must be text, got 7"),
        ("training", [], "training: must be a mapping, is a list"),
        ("objective__thresold", 0.3, "unknown key objective.thresold; did you mean threshold"),
        ("objective__threshold", 2, "objective.threshold: must be above 0 and below 1, got 2"),
        ("backbone", None, "backbone: is missing"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_naming_the_file(folder: Path, key: str, value: Any, words: str) -> None:
    edit(folder, **{key: value})
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model_folder(folder)
    assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_alone_needs_a_card() -> None:
    with pytest.raises(ConfigError, match="card: a network needs its model card"):
        Segmenter(network(), device="cpu")


def test_cells_within_the_known_diameters_keep_their_scale() -> None:
    datasets = tuple(TrainingData(diameter=d, scale=s) for d, s in ((12.0, 0.5), (30.0, 1.0)))
    known = Training(diameter=20.0, min_diameter=10.0, max_diameter=24.0, datasets=datasets).diameters
    assert known is not None and (known.median, known.smallest, known.largest, known.usual) == (20, 10, 30, 0.75)
    assert [known.scale_for(d) for d in (5, 10, 20, 30, 60)] == [2, 1, 1, 1, 0.5]
    assert Training(datasets=datasets).diameters is None


def test_only_a_network_of_the_cards_crop_is_saved_with_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="overlap"):
        save_model(tmp_path, network(), replace(ModelCard(crop_size=64), crop_size=32))


def sources(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder in ("dinocell", "benchmarks", "examples"):
        for file in sorted((repository / folder).rglob("*.py")):
            yield file.relative_to(repository).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def test_one_module_names_config_json(repository: Path) -> None:
    """As a file to open; sentences may mention it."""
    found = {
        name
        for name, tree in sources(repository)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value == "config.json" or node.value.endswith("/config.json")
    }
    assert found == OWNERS


def test_no_function_takes_or_returns_a_card_as_a_mapping(repository: Path) -> None:
    found = []
    for name, tree in sources(repository):
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            typed = [(a.arg, a.annotation) for a in arguments if a.arg in CARD_NAMES]
            typed += [(node.name, node.returns)] if {"meta", "card"} & set(node.name.split("_")) else []
            for word, annotation in typed:
                text = ast.unparse(annotation) if annotation is not None else ""
                if "Mapping[" in text or "dict[" in text:
                    found.append(f"{name}: {node.name}, {word}: {text}")
    assert found == []
