"""Going on from a finished model (`start`): its shapes, its weights, and its mistakes."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dinocell.core.config import from_dict
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.datasets.labelled import open_dataset
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.config import DataConfig
from dinocell.finetune.data.hard_examples import training_scores
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.data.run_data import open_items
from dinocell.finetune.from_model import adopt, open_start, other_split
from dinocell.finetune.validate.validator import Validator, validation_runner
from dinocell.labels.files import read_labels
from dinocell.metrics import score_image
from dinocell.models import ModelCard, VisionTransformer, ViTConfig, load_model_folder, save_backbone
from dinocell.models.packaged import find_model
from dinocell.segmentation import load_model

BASE = {
    "backbone": {"depth": 2},
    "decoder": {"neck_width": 32, "detail_width": 8},
    "objective": {"flow_error": 0.0, "threshold": 0.4},
    "preprocess": {"clahe": False},
    "train": {"steps": 2, "batch_size": 2},
}


@pytest.fixture(scope="module")
def model(disks_dataset: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., FinetuneConfig]) -> Path:
    return run(tiny(disks_dataset, tmp_path_factory.mktemp("start"), BASE)).folder / "model"


def going_on(model: Path | str, root: Path, out: Path, **changes: object) -> FinetuneConfig:
    plain = {
        "start": str(model),
        "output_dir": str(out),
        "device": "cpu",
        "precision": "float32",
        "data": {"root": [str(root)], "workers": 0},
        "train": {"steps": 1, "batch_size": 2, "lr": 1e-12, "weight_decay": 0.0},
        "validate": {"times": 0, "tune_decoding": False},
    }
    return from_dict(FinetuneConfig, {**plain, **changes})


def test_a_step_of_no_length_gives_the_model_back(model: Path, disks_dataset: Path, tmp_path: Path) -> None:
    folder = run(going_on(model, disks_dataset, tmp_path / "run")).folder / "model"
    old, new = (load_model_folder(where)[0].state_dict() for where in (model, folder))
    assert old.keys() == new.keys()
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=1e-6, msg=name)
    metas = [json.loads((where / "config.json").read_text()) for where in (model, folder)]
    for key in ("crop_size", "input_size", "overlap", "preprocess", "decoder", "objective", "fit"):
        assert metas[0][key] == metas[1][key], key
    assert metas[1]["training"]["initial_weights"] == "model"
    assert len(metas[1]["training"]["initial_weights_sha256"]) == 64


def test_views_are_those_of_the_model_unless_the_recipe_says_otherwise(
    model: Path, disks_dataset: Path, tmp_path: Path
) -> None:
    train = {"steps": 1, "batch_size": 2}
    plain, two = ({"times": 1, "tune_decoding": False, **more} for more in ({}, {"views": 2}))
    first = run(going_on(model, disks_dataset, tmp_path / "a", train=train, validate=two)).folder / "model"
    assert load_model(model, device="cpu").runner.views == 1 and load_model(first, device="cpu").runner.views == 2
    card = ModelCard.read(first)
    assert adopt(going_on(first, disks_dataset, tmp_path / "b", validate=plain), card).validate.views == 2
    one = {**plain, "views": 1}
    assert (
        adopt(going_on(first, disks_dataset, tmp_path / "b", validate=one), ModelCard.read(first)).validate.views == 1
    )

    # The scores in the folder are those of the averaged maps.
    items = open_dataset(disks_dataset, "val")
    scored = json.loads((first / "config.json").read_text())["validation"]["mean"]["loss"]
    network, card = load_model_folder(first)
    config = adopt(going_on(first, disks_dataset, tmp_path / "b", validate=two), card)
    losses = {}
    for views in (1, 2):
        told = replace(config, validate=replace(config.validate, views=views))
        validator = Validator(ImageStore(items, told, print), told.objective, told)
        runner = validation_runner(network, told, torch.device("cpu"), torch.float32)
        losses[views] = validator.run(runner).metrics()["loss"]
    assert losses[2] == pytest.approx(scored, rel=1e-4) and losses[1] != pytest.approx(scored, rel=1e-4)


def test_a_finished_run_takes_the_views_of_a_second_call(model: Path, disks_dataset: Path, tmp_path: Path) -> None:
    train, folder = {"steps": 1, "batch_size": 2}, tmp_path / "a"
    losses = {}
    for views in (1, 2):
        plain = {"times": 1, "tune_decoding": False, "views": views}
        trained = run(going_on(model, disks_dataset, folder, train=train, validate=plain)).folder
        meta = json.loads((trained / "model" / "config.json").read_text())
        assert meta["views"] == views and meta["training"]["step"] == 1
        losses[views] = meta["validation"]["mean"]["loss"]
    assert losses[1] != pytest.approx(losses[2], rel=1e-4)


def test_an_impossible_number_of_views_is_named(disks_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"validate\.views: must be one of 0, 1, 2, 4, 8, got 3"):
        going_on("cells", disks_dataset, tmp_path, validate={"views": 3})


def test_a_context_branch_can_be_added_to_a_finished_model(model: Path, disks_dataset: Path, tmp_path: Path) -> None:
    wider = {"detail_width": 8, "detail_context": True}
    folder = run(going_on(model, disks_dataset, tmp_path / "run", decoder=wider)).folder / "model"
    old, new = load_model_folder(model)[0], load_model_folder(folder)[0]
    assert new.decoder_config.detail_context and new.decoder_config.neck_width == old.decoder_config.neck_width
    assert set(new.state_dict()) > set(old.state_dict())
    z = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # silent at first: the step has no length
        torch.testing.assert_close(new(z), old(z), rtol=1e-4, atol=1e-4)
    trained = run(
        going_on(model, disks_dataset, tmp_path / "on", decoder=wider, train={"steps": 2, "batch_size": 2})
    ).folder
    merge = load_model_folder(trained / "model")[0].state_dict()["decoder.detail.merge_context.weight"]
    assert merge.abs().max() > 0


def test_other_backbone_weights_meet_the_models_decoder(model: Path, disks_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = VisionTransformer(ViTConfig(arch="vit_tiny", depth=2, patch_size=8, image_size=32, in_channels=1))
    weights = save_backbone(tmp_path / "other", other, {})
    folder = run(
        going_on(model, disks_dataset, tmp_path / "run", backbone={"weights": str(weights), "train": "frozen"})
    ).folder
    trained, stored = load_model_folder(folder / "model")[0], load_model_folder(model)[0]
    torch.testing.assert_close(trained.backbone.norm.weight, other.norm.weight)
    torch.testing.assert_close(trained.backbone.blocks[1].mlp.fc1.weight, other.blocks[1].mlp.fc1.weight)
    for name, value in stored.decoder.state_dict().items():
        torch.testing.assert_close(trained.decoder.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_images_that_the_model_does_badly_are_drawn_more_often(
    model: Path,
    disks_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[int] = []
    get = ImageStore.get
    data = {"root": [str(disks_dataset)], "workers": 0, "hard": 2.0, "check_images": 0}
    whole = going_on(
        model, disks_dataset, tmp_path / "run", data=data, train={"steps": 24, "batch_size": 2, "checkpoint_every": 4}
    )
    scores = (0.05, 0.95, 0.95, 0.95, 0.95, 0.95)
    module = importlib.import_module("dinocell.finetune.trainer")  # the name in the package is the function
    monkeypatch.setattr(module, "training_scores", lambda *_: scores)
    monkeypatch.setattr(ImageStore, "get", lambda self, index: drawn.append(index) or get(self, index))
    folder = run(whole).folder
    assert drawn.count(0) > 40  # of 48: 1 against 0.05 in all for the five others, 8 at most by rounding
    assert "mean MMA of" in capsys.readouterr().out

    def not_again(*_: object) -> None:
        raise AssertionError("a continued run scored its training images again, with a model that is trained by now")

    monkeypatch.setattr(module, "training_scores", not_again)
    first = load_model_folder(folder / "model")[0].state_dict()
    for path in folder.glob("checkpoints/*000024*"):
        path.unlink()
    run(whole)
    for name, value in load_model_folder(folder / "model")[0].state_dict().items():
        assert torch.equal(value, first[name]), name


def test_training_scores_are_what_segmentation_reaches(disks_dataset: Path, tmp_path: Path) -> None:
    network, card = load_model_folder(find_model("cells"))
    config = adopt(going_on("cells", disks_dataset, tmp_path / "run"), card)
    store = ImageStore(open_items(config, "train"), config, print)
    scores = training_scores(validation_runner(network, config, torch.device("cpu"), torch.float32), store, config)
    assert len(scores) == len(store) == 6
    assert min(scores) > 0.5 and len(set(scores)) > 1  # bright disks are easy, and not all the same
    model = load_model("cells", device="cpu", precision="float32")
    for item, prepared, score in zip(store.items, map(store.get, range(6)), scores, strict=True):
        assert prepared is not None
        diameter = (model.card.training.diameter or 0) / prepared.rescaled  # the same enlargement
        labels = model.segment(item.image, diameter=diameter).labels
        assert score == pytest.approx(score_image(read_labels(item.mask), labels).metrics()["MMA"], abs=0.01)


def test_hard_images_need_a_model_that_knows_them() -> None:
    with pytest.raises(ConfigError, match=r"data\.hard: 1 goes by the cells that the model in start= finds"):
        FinetuneConfig(data=DataConfig(hard=1.0))


def test_weights_of_another_width_are_a_clear_mistake(model: Path, disks_dataset: Path, tmp_path: Path) -> None:
    other = VisionTransformer(ViTConfig(arch="vit_small", depth=1, patch_size=8, image_size=32, in_channels=1))
    weights = save_backbone(tmp_path / "other", other, {})
    with pytest.raises(ConfigError, match=r"start: the decoder .* vit_tiny"):
        run(going_on(model, disks_dataset, tmp_path / "run", backbone={"weights": str(weights)}))


def test_the_diameters_of_a_model_hold_unless_the_recipe_has_its_own(
    disks_dataset: Path, tmp_path: Path, tiny: Callable[..., FinetuneConfig]
) -> None:
    changes = {**BASE, "data": {"min_diameter": 8, "max_diameter": 14}, "train": {"steps": 1, "batch_size": 2}}
    model = run(tiny(disks_dataset, tmp_path / "run", changes)).folder / "model"
    card = ModelCard.read(model)
    plain = adopt(from_dict(FinetuneConfig, {"start": str(model)}), card)
    assert (plain.data.min_diameter, plain.data.max_diameter) == (8, 14)
    own = adopt(from_dict(FinetuneConfig, {"start": str(model), "data": {"max_diameter": 30}}), card)
    assert (own.data.min_diameter, own.data.max_diameter) == (0, 30)


@pytest.mark.parametrize(("seed", "words"), [(0, ""), (7, "use seed=0")])
def test_another_seed_holds_out_what_the_model_was_trained_on_and_that_is_said(
    model: Path, disks_dataset: Path, tmp_path: Path, seed: int, words: str
) -> None:
    config = going_on(model, disks_dataset, tmp_path, seed=seed)
    name = open_dataset(disks_dataset, "train")[0].dataset.name
    found = other_split(config, [name], ModelCard.read(model))
    assert (words in found) and bool(found) == bool(words)
    assert other_split(config, ["a dataset that the model has not seen"], ModelCard.read(model)) == ""
    assert other_split(config, [name], ModelCard(crop_size=32)) == ""


def test_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"crop_size": 32}')
    with pytest.raises(CheckpointError, match="input_size"):
        open_start(from_dict(FinetuneConfig, {"start": str(tmp_path)}))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        open_start(from_dict(FinetuneConfig, {"start": str(tmp_path / "absent")}))
    assert open_start(FinetuneConfig()) is None
