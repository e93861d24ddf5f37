"""ONNX files and BioImage Model Zoo packages give what PyTorch gives; without their libraries, one line says so."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dinocell.cli.train import export
from dinocell.core.errors import ConfigError
from dinocell.datasets.synthetic.sample import make_image
from dinocell.export import bioimage, onnx_file
from dinocell.export.bioimage import About, export_bioimage
from dinocell.export.onnx_file import FixedSize, describe, export_onnx
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane
from dinocell.models import ModelCard, SegmentationModel, VisionTransformer, ViTConfig, load_model_folder, save_model
from dinocell.models.decoder import DecoderConfig
from dinocell.models.training_record import Training

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
HAS_BIOIMAGE = HAS_ONNX and importlib.util.find_spec("bioimageio") is not None
MODELS: dict[str, dict[str, Any]] = {
    "enlarged": {"crop": 64, "input": 112, "stored": 56, "kind": "transposed"},
    "shrunk": {"crop": 128, "input": 64, "stored": 64, "kind": "bilinear", "detail": 16},
    "rgb": {"crop": 64, "input": 64, "stored": 32, "kind": "linear", "channels": 3, "registers": 4},
}


def build(name: str) -> SegmentationModel:
    torch.manual_seed(0)
    given = MODELS[name]
    config = ViTConfig(
        arch="vit_tiny",
        patch_size=8,
        image_size=given["stored"],
        in_channels=given.get("channels", 1),
        registers=given.get("registers", 0),
        interpolate_offset=0.0 if given.get("registers") else 0.1,
        interpolate_antialias=bool(given.get("registers")),
        depth=2,
        layerscale_init=1.0,
    )
    decoder = DecoderConfig(neck_width=32, kind=given["kind"], detail_width=given.get("detail", 0))
    return SegmentationModel(VisionTransformer(config), decoder, 3, given["crop"], given["input"]).eval()


def folder(tmp_path: Path, name: str, **fields: Any) -> Path:
    card = ModelCard(crop_size=MODELS[name]["crop"], preprocess=PreprocessConfig(clahe=False), **fields)
    return save_model(tmp_path / "model", build(name), card)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_that_is_exported_is_the_model(name: str) -> None:
    """Matrix products in place of resizing, and positions stored at the input's grid, change nothing but rounding."""
    model = build(name)
    z = torch.randn(2, 1, model.crop_size, model.crop_size)
    with torch.no_grad():
        torch.testing.assert_close(FixedSize(model)(z), model(z), rtol=1e-4, atol=1e-5)


def test_the_description_says_what_a_program_needs(tmp_path: Path) -> None:
    card = ModelCard.read(folder(tmp_path, "enlarged", overlap=16))
    facts = json.loads(json.dumps(describe(card)))
    assert (facts["crop_size"], facts["overlap"], facts["maps"]) == (64, 16, ["flow_y", "flow_x", "probability"])
    assert not any("CLAHE" in step for step in facts["preprocessing"])
    assert any("CLAHE" in step for step in onnx_file.preprocessing_steps(PreprocessConfig(), 64))
    assert "0. " not in facts["preprocessing"][0]
    scaled = describe(replace(card, rescale="auto", training=Training(diameter=21.4)))
    assert scaled["preprocessing"][0] == "0. Resized so that cells are about 21 px in diameter."


def test_the_packages_preprocessing_is_ours_but_for_clahe_and_the_tails() -> None:
    gray = make_image(3, 256, "phase")[0].astype(np.float32)
    config = PreprocessConfig(clahe=False)
    assert (
        np.corrcoef(bioimage.package_input(gray, config).ravel(), preprocess_plane(gray, config).ravel())[0, 1] > 0.9999
    )
    assert np.abs(bioimage.package_input(gray, config) - preprocess_plane(gray, config)).mean() < 0.02
    whole = PreprocessConfig(clahe=False, percentile_low=0, percentile_high=100)
    np.testing.assert_allclose(bioimage.package_input(gray, whole), preprocess_plane(gray, whole), atol=1e-4)


@pytest.mark.skipif(HAS_ONNX, reason="onnx is installed")
def test_without_onnx_the_extra_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, "enlarged")
    with pytest.raises(ConfigError, match=r"^export: needs onnx and onnxscript, .*pip install 'dinocell\[onnx\]'$"):
        export_onnx(path)
    with pytest.raises(ConfigError, match=r"dinocell\[bioimage\]"):
        export.main([str(path), "--to", "bioimage"])


@pytest.mark.parametrize(("about", "word"), [(About(licence="CC0-1.0"), "author"), (About(authors=("A",)), "licence")])
def test_a_package_needs_authors_and_a_licence(
    about: About, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bioimage, "require", lambda *_: None)
    with pytest.raises(ConfigError, match=rf"^{word}: .*--{word}"):
        export_bioimage(folder(tmp_path, "enlarged"), about=about)


def test_the_test_image_must_fill_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bioimage, "require", lambda *_: None)
    np.save(tmp_path / "a.npy", np.zeros((40, 100), np.uint8))
    with pytest.raises(ConfigError, match=r"image: .*a\.npy has 40 x 100 px; .*64 x 64"):
        export_bioimage(
            folder(tmp_path, "enlarged"), about=About(authors=("A",), licence="X"), image=tmp_path / "a.npy"
        )


@pytest.mark.skipif(not HAS_ONNX, reason="needs the onnx extra")
@pytest.mark.parametrize(("name", "batch"), [("enlarged", None), ("shrunk", 2), ("rgb", None)])
def test_onnxruntime_gives_pytorchs_maps(name: str, batch: int | None, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    path = folder(tmp_path, name)
    written = export_onnx(path, tmp_path / "out", batch=batch)
    assert written.path == tmp_path / "out" / "model.onnx"
    assert written.difference is not None
    assert written.difference < 1e-4 * max(written.largest, 1)
    session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    network, _ = load_model_folder(path)
    for count in (batch,) if batch else (1, 2, 5):
        z = np.random.default_rng(count).standard_normal((count, 1, network.crop_size, network.crop_size), np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(z)).numpy()
        np.testing.assert_allclose(session.run(None, {"input": z})[0], expected, rtol=1e-3, atol=1e-5)
    model = onnx.load(written.path)
    onnx.checker.check_model(model)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["dinocell"])["crop_size"] == network.crop_size


@pytest.mark.skipif(not HAS_BIOIMAGE, reason="needs the bioimage extra")
def test_a_package_passes_bioimageios_own_test(tmp_path: Path) -> None:
    path = folder(tmp_path, "enlarged", licence="CC-BY-4.0")
    to = ["--to", "bioimage", "--out", str(tmp_path / "a.zip"), "--author", "A. Name"]
    assert export.main([str(path), *to]) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        rdf = yaml.safe_load(archive.read("rdf.yaml"))
        readme = archive.read("README.md").decode()
    assert names == {"rdf.yaml", "README.md", "cover.png", "model.onnx", "test_input.npy", "test_output.npy"}
    assert (rdf["type"], rdf["license"], rdf["authors"]) == ("model", "CC-BY-4.0", [{"name": "A. Name"}])
    assert rdf["config"]["dinocell"]["maps"] == rdf["outputs"][0]["axes"][1]["channel_names"]
    assert "MMA" in readme
    assert "CLAHE is left out" not in readme  # this model was trained without
