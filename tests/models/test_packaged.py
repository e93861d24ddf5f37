"""Packaged models: found by name, described without loading, in the wheel; and halving a model folder."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dinocell
from dinocell import cli
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.recipes import FOLDERS, recipe_names
from dinocell.labels.files import read_labels
from dinocell.models import (
    DecoderConfig,
    ModelCard,
    SegmentationModel,
    VisionTransformer,
    ViTConfig,
    packaged,
    save_model,
)
from dinocell.models.folder import halve_model_folder, load_model_folder
from dinocell.models.packaged import find_model, packaged_models
from dinocell.models.training_record import ScoreTable, Training, TrainingData
from dinocell.objectives import ObjectiveConfig
from dinocell.predict.runner import Runner
from dinocell.segmentation import Segmenter, run

MODEL = ModelCard(
    crop_size=64,
    objective=ObjectiveConfig(kind="semantic", min_size=1),
    licence="CC BY 4.0",
    training=Training(
        diameter=24.0,
        datasets=(TrainingData(name="nuclei", modality="fluorescence", licence="CC0", source="here", train_images=7),),
    ),
    validation=ScoreTable(mean={"loss": 0.1, "MMA": 0.5, "AP50": None}, by_dataset={"nuclei": {"MMA": 0.5}}),
)


def network(seed: int = 0) -> SegmentationModel:
    torch.manual_seed(seed)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
    model = SegmentationModel(VisionTransformer(config), DecoderConfig(neck_width=16), 1, 64, 64)
    last = [module for module in model.decoder.heads.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        assert last.bias is not None
        last.bias -= model(torch.randn(4, 1, 64, 64)).mean()  # half of the pixels are cells
    return model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), network(), MODEL)


@pytest.fixture
def install(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make an installation with packaged models of the names given; returns the folder that holds them."""

    def with_names(*names: str) -> Path:
        folder = tmp_path / "packaged"
        folder.mkdir()
        for name in names:
            shutil.copytree(built, folder / name)
        monkeypatch.setattr(packaged, "PACKAGED", folder)
        return folder

    return with_names


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return int(left.value.code or 0)


def test_no_model_named_takes_cells_everywhere(install: Callable[..., Path], tmp_path: Path) -> None:
    install("bacteria", "cells")
    image = np.random.default_rng(0).integers(0, 255, (70, 90)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    expected = Segmenter("cells", device="cpu").segment(image).labels
    assert expected.max() > 0, "cells to compare"
    for labels in (
        dinocell.segment(image, device="cpu"),
        dinocell.segment(tmp_path / "image.npy", device="cpu"),
        dinocell.load_model("cells", device="cpu").segment(image).labels,
        Segmenter(device="cpu").segment(image).labels,
    ):
        np.testing.assert_array_equal(labels, expected)
    run([tmp_path / "image.npy"], tmp_path / "run", device="cpu")
    assert command("segment", str(tmp_path / "image.npy"), "--out", str(tmp_path / "out"), "--device", "cpu") == 0
    for folder in ("run", "out"):
        labels = read_labels(tmp_path / folder / "image_labels.tif")
        np.testing.assert_array_equal(labels, expected)


def test_without_a_packaged_model_one_line_says_what_to_do(
    install: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    np.save(tmp_path / "image.npy", np.eye(70))
    assert command("segment", str(tmp_path / "image.npy"), "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "no packaged model is in this installation" in said and "--model DIR" in said
    assert command("models") == 0
    assert "No packaged model is in this installation" in capsys.readouterr().out


def test_several_models_without_a_default_ask_which(install: Callable[..., Path]) -> None:
    install("a", "b")
    with pytest.raises(ConfigError, match=r"--model NAME .* takes one of a, b"):
        find_model(None)


@pytest.mark.parametrize(("wrong", "right"), [("cels", "cells"), ("CELLS", "cells"), ("bacterium", "bacteria")])
def test_an_unknown_name_names_the_nearest_and_lists_all(install: Callable[..., Path], wrong: str, right: str) -> None:
    install("bacteria", "cells")
    with pytest.raises(ConfigError, match=rf"{wrong!r} .*did you mean {right}\? \(packaged: bacteria, cells; nothing"):
        find_model(wrong)


def test_a_folder_of_images_does_not_hide_the_model_of_its_name(
    install: Callable[..., Path], tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install("cells")
    (tmp_path / "here" / "cells").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert find_model("cells") == folder / "cells"
    shutil.copytree(built, "cells", dirs_exist_ok=True)
    assert find_model("cells").resolve() == tmp_path / "here" / "cells", "a model folder goes first"


def test_models_are_listed_for_people_and_programs(
    install: Callable[..., Path], built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = install("bacteria", "cells")
    parameters = sum(p.numel() for p in network().parameters())
    assert command("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["default"] == "cells" and [one["name"] for one in listed["models"]] == packaged_models()
    one = listed["models"][1]
    assert one["parameters"] == parameters and one["bytes"] == (built / "model.safetensors").stat().st_size
    assert (one["backbone"], one["objective"], one["licence"], one["default"]) == (
        "vit_tiny/8", "semantic", "CC BY 4.0", True
    )  # fmt: skip
    assert one["data"] == [
        {"name": "nuclei", "modality": "fluorescence", "licence": "CC0", "source": "here", "images": 7}
    ]
    assert one["scores"]["split"] == "validation" and one["scores"]["by_dataset"] == {"nuclei": {"MMA": 0.5}}
    replace(ModelCard.read(folder / "cells"), test=ScoreTable(mean={"MMA": 0.75})).write(folder / "cells")
    assert command("models") == 0
    text = capsys.readouterr().out
    for part in ("cells (default)", "nuclei (7 images, CC0)", "mean: MMA 0.750", "CC BY 4.0", "Nothing is downloaded"):
        assert part in text
    (folder / "cells" / "model.safetensors").write_bytes(b"damaged")
    assert command("models") == 1
    assert "not a readable model folder" in capsys.readouterr().err


def test_half_precision_gives_nearly_the_same_maps(built: Path, tmp_path: Path) -> None:
    (built / "MODEL_CARD.md").write_text("# card\n")
    before = (built / "model.safetensors").read_bytes()
    assert command("export", str(built), "--to", "half", "--out", str(tmp_path / "half")) == 0
    assert (built / "model.safetensors").read_bytes() == before
    half = tmp_path / "half"
    assert (half / "MODEL_CARD.md").read_text() == "# card\n"
    assert (half / "config.json").read_bytes() == (built / "config.json").read_bytes()
    assert (half / "model.safetensors").stat().st_size < 0.55 * len(before)
    assert packaged.model_info(half).dtype == "F16"
    model, _ = load_model_folder(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    z = np.random.default_rng(0).normal(size=(100, 120)).astype(np.float32)
    exact = Runner(network=load_model_folder(built)[0], window=64, overlap=16).maps(z)
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 3e-2)):
        maps = Runner(network=model, window=64, overlap=16, dtype=dtype).maps(z)
        assert np.abs(maps - exact).max() < tolerance * np.abs(exact).max()


def test_small_scales_keep_their_digits_in_half_precision(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.backbone.blocks[0].ls1.gamma.fill_(1.2345e-7)
    stored = load_file(save_model(tmp_path, model, MODEL, half=True) / "model.safetensors")
    gamma = stored["backbone.blocks.0.ls1.gamma"]
    torch.testing.assert_close(gamma, torch.full_like(gamma, 1.2345e-7), rtol=1e-6, atol=0)
    assert stored["backbone.pos_embed"].dtype == torch.float16


def test_halving_refuses_itself_and_values_too_large(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(), MODEL)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="name another folder"):
        halve_model_folder(folder, tmp_path / "model" / ".." / "model")
    assert (folder / "model.safetensors").read_bytes() == before
    state = load_file(folder / "model.safetensors")
    state["backbone.pos_embed"][0, 0, 0] = 1e6
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"backbone\.pos_embed contains values beyond ±65504"):
        halve_model_folder(folder, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_the_wheel_holds_what_the_package_needs(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(repository / "dinocell", tree / "dinocell", ignore=skip)
    for recipes in FOLDERS.values():
        shutil.copytree(repository / recipes, tree / recipes)
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copyfile(repository / name, tree / name)
    tiny = tree / "dinocell" / "models" / "packaged" / "tiny"
    tiny.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "README.md"):
        (tiny / name).write_text("content")
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entries = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "dinocell = dinocell.napari:napari.yaml" in entries
    for name in ("model.safetensors", "config.json", "README.md"):
        assert f"dinocell/models/packaged/tiny/{name}" in names
    assert (
        "dinocell/py.typed" in names
        and "dinocell/napari/napari.yaml" in names
        and "dinocell/recipes/data_curation/default.yaml" in names
    )
    recipes = {f"dinocell/recipes/{kind}/{name}.yaml" for kind in FOLDERS for name in recipe_names(kind)}
    assert recipes == {name for name in names if name.startswith("dinocell/recipes/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dinocell"}


def test_exports_of_a_packaged_model_leave_the_installation_as_it_is(tmp_path: Path) -> None:
    assert packaged.export_folder(packaged.PACKAGED / "cells") == Path()
    assert packaged.export_folder(tmp_path / "model") == tmp_path / "model"
