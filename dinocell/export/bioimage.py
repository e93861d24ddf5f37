"""A trained model as a BioImage Model Zoo package (rdf.yaml 0.5 with ONNX weights), checked with their validator.

https://bioimage.io describes the format. What it cannot express of our preprocessing (CLAHE of the whole image) is left
out, and the package's README says how much that changes on its test image.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.arrays import Float32
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import atomic_write_bytes, local_path, sha256_of
from dinocell.datasets.synthetic.sample import make_image
from dinocell.export.onnx_file import NEEDED, OUTPUT, OnnxFile, describe, export_onnx, require
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.images.planes import iter_planes, loaded, open_image
from dinocell.metrics import maximum_matching_accuracy
from dinocell.models import SegmentationModel
from dinocell.models.packaged import export_folder, find_model
from dinocell.models.training_record import Training
from dinocell.objectives import build_objective
from dinocell.report.overlays import overlay, to_rgb
from dinocell.segmentation.segmenter import Segmenter

FORMAT = "0.5.12"
EPS = 1e-6
COVER = 320
"""Height of the cover, px."""
CITE = (
    {
        "text": "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2024",
        "doi": "10.48550/arXiv.2304.07193",
    },
    {
        "text": "Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods, 2021",
        "doi": "10.1038/s41592-020-01018-x",
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """Facts about a package that a model folder does not contain.

    Attributes:
        authors: names of those who made the model.
        licence: SPDX identifier of the weights' licence, e.g. CC-BY-4.0.
        name: 5 to 128 letters, digits, spaces and _+-().
    """

    authors: tuple[str, ...] = ()
    licence: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """Result of an export: the zip file, its ONNX file, and the package's differences from our pipeline.

    Attributes:
        path: of the zip file.
        onnx: what is known of the weights in it.
        status: of bioimage.io's validator.
        agreement: MMA between the labels of our own preprocessing and of the package's, on the test image.
        cells: that our own pipeline finds there.
    """

    path: Path
    onnx: OnnxFile
    status: str
    agreement: float
    cells: int

    def __str__(self) -> str:
        cells = f"{self.cells} cells on its test image agree with dinocell segment to MMA {self.agreement:.3f}"
        return f"{self.path}: {self.status} by bioimageio.core's test; {cells}"


def export_bioimage(
    model: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None = None,
    *,
    about: About | None = None,
    image: str | os.PathLike[str] | None = None,
) -> Package:
    """Write a BioImage Model Zoo package and test it with bioimageio.core.

    Args:
        model: a model folder, a run folder of fine-tuning, a packaged name; None for the default model.
        out: the .zip, or a folder for `NAME.zip`; default: inside the model folder, or the working
            directory for a packaged model.
        about: authors, licence and name; the licence may be on the model card.
        image: test image, at least as large as the model's window, whose middle is taken; default: a generated one.

    Raises:
        ConfigError: no such model, no authors or licence, the `bioimage` extra is missing, or the image is too small.
        CheckpointError: damaged weights, or a package that does not pass the test.
    """
    require(("bioimageio.core", *NEEDED, "onnxruntime"), "bioimage")
    folder = find_model(model)
    segmenter = Segmenter(folder, device="cpu", precision="float32")
    about = _complete(about or About(), segmenter.card.licence, folder)
    sample = _sample(image, segmenter.runner.window)
    target = Path(out) if out is not None else export_folder(folder)
    target = target if target.suffix == ".zip" else target / f"{about.name.replace(' ', '_')}.zip"
    with tempfile.TemporaryDirectory() as scratch:
        onnx = export_onnx(folder, Path(scratch, "model.onnx"))
        own, theirs = _compare(segmenter, sample)
        agreement = float(maximum_matching_accuracy(own, theirs))
        _write_files(Path(scratch), segmenter, sample, own, about, onnx, agreement)
        data = _zipped(Path(scratch))
        status = _tested(data, Path(scratch))
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(target, data)
    onnx = dataclasses.replace(onnx, path=Path("model.onnx"))
    written = Package(path=target, onnx=onnx, status=status, agreement=agreement, cells=int(own.max()))
    log.info(str(written))
    return written


def _complete(about: About, licence: str, folder: Path) -> About:
    name = about.name or f"DINOCell {folder.parent.name if folder.name == 'model' else folder.name}"
    licence = about.licence or licence
    if not about.authors:
        raise ConfigError("author: a package names who made the model: --author 'A. Name' (several times for several)")
    if not licence:
        raise ConfigError(f"licence: {folder} does not say under which its weights are; give it: --licence CC-BY-4.0")
    return dataclasses.replace(about, name=name, licence=licence)


def _sample(image: str | os.PathLike[str] | None, window: int) -> Float32:
    """Gray test image (window, window)."""
    if image is None:
        return make_image(2, window, "phase")[0].astype(np.float32)
    gray = loaded(next(iter_planes(open_image(local_path(os.fspath(image)))))).gray
    if min(gray.shape) < window:
        size = f"{gray.shape[0]} x {gray.shape[1]}"
        raise ConfigError(f"image: {os.fspath(image)} has {size} px; the test image needs {window} x {window} or more")
    top, left = ((side - window) // 2 for side in gray.shape)
    return np.asarray(gray[top : top + window, left : left + window], np.float32)


def package_steps(config: PreprocessConfig) -> list[dict[str, Any]]:
    """Our preprocessing in the format's terms, as far as it has them (it has no CLAHE).

    Scaling percentiles to [0, 1] before would change nothing: the last step undoes it.
    """
    percentiles = {"min_percentile": config.percentile_low, "max_percentile": config.percentile_high}
    return [
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        {"id": "clip", "kwargs": {"axes": ["y", "x"], **percentiles}},
        {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"], "eps": EPS}},
    ]


def package_input(gray: Float32, config: PreprocessConfig) -> Float32:
    """Preprocess a plane (H, W) as bioimageio.core does by those steps, float32, with the plane's statistics."""
    low, high = np.quantile(gray, [config.percentile_low / 100, config.percentile_high / 100])
    return np.asarray((np.clip(gray, low, high) - gray.mean()) / (gray.std() + EPS), np.float32)


def _maps(network: torch.nn.Module, z: Float32) -> Float32:
    with torch.no_grad():
        maps: Float32 = network(torch.from_numpy(z)[None, None]).numpy()[0]
    return maps


def _compare(segmenter: Segmenter, sample: Float32) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels of a sample by our pipeline, and by the package's preprocessing with our decoding."""
    own = segmenter.segment(sample).labels
    maps = _maps(segmenter.model, package_input(sample, segmenter.preprocess))
    return own, build_objective(segmenter.objective).decode(maps)


def _write_files(
    folder: Path,
    segmenter: Segmenter,
    sample: Float32,
    labels: NDArray[Any],
    about: About,
    onnx: OnnxFile,
    agreement: float,
) -> None:
    """Everything but the weights: rdf.yaml, README.md, cover, test input and output."""
    assert isinstance(segmenter.model, SegmentationModel)
    maps = _maps(segmenter.model, package_input(sample, segmenter.preprocess))
    np.save(folder / "test_input.npy", sample[None, None])
    np.save(folder / "test_output.npy", maps[None])
    atomic_write_bytes(folder / "cover.png", _cover(sample, labels))
    facts = describe(segmenter.card)
    (folder / "README.md").write_text(_readme(segmenter, about, facts, onnx, agreement), encoding="utf-8")
    rdf = _rdf(folder, segmenter, about, facts, onnx)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _cover(sample: Float32, labels: NDArray[Any]) -> bytes:
    """The test image beside itself with the cells outlined: PNG of 2 : 1."""
    side = np.concatenate([to_rgb(sample), overlay(sample, labels)], axis=1)
    small = cv2.resize(side, (2 * COVER, COVER), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".png", small[..., ::-1])[1])


def _rdf(folder: Path, segmenter: Segmenter, about: About, facts: Mapping[str, Any], onnx: OnnxFile) -> dict[str, Any]:
    side, objective = segmenter.runner.window, build_objective(segmenter.objective)
    space = [{"type": "space", "id": axis, "size": side} for axis in "yx"]
    halo = segmenter.runner.overlap // 2
    framed = [
        {"type": "space", "id": axis, "size": {"tensor_id": "input", "axis_id": axis}, "halo": halo} for axis in "yx"
    ]
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": about.name,
        "description": f"Cell segmentation ({objective.name}) by a vision transformer, made with DINOCell.",
        "authors": [{"name": name} for name in about.authors],
        "cite": [dict(entry) for entry in CITE],
        "license": about.licence,
        "documentation": _file(folder, "README.md"),
        "covers": [_file(folder, "cover.png")],
        "tags": ["segmentation", "cells", "instance-segmentation", "vision-transformer", "2d", "dinocell"],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": "input",
                "description": "one gray plane",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["gray"]}, *space],
                "data": {"type": "float32"},
                "test_tensor": _file(folder, "test_input.npy"),
                "preprocessing": package_steps(segmenter.preprocess),
            }
        ],
        "outputs": [
            {
                "id": OUTPUT,
                "description": "raw maps, without activation; config.dinocell says how cells are made of them",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": facts["maps"]}, *framed],
                "data": {"type": "float32"},
                "test_tensor": _file(folder, "test_output.npy"),
            }
        ],
        "weights": {"onnx": {**_file(folder, "model.onnx"), "opset_version": onnx.opset}},
        "config": {"dinocell": dict(facts)},
    }


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": sha256_of(folder / name)}


def _readme(segmenter: Segmenter, about: About, facts: Mapping[str, Any], onnx: OnnxFile, agreement: float) -> str:
    config = segmenter.preprocess
    lines = [
        f"# {about.name}",
        "",
        f"A DINOCell model: raw maps {', '.join(facts['maps'])} of crops of {segmenter.runner.window} px.",
        "`dinocell segment` makes cells of them (Python: `dinocell.objectives`); rdf.yaml has the numbers for that",
        "under `config.dinocell`.",
        "",
        "## Preprocessing",
        "",
        "The model was trained on images prepared so:",
        "",
        *facts["preprocessing"],
        "",
        "rdf.yaml says the same in the format's own operations, with these differences:",
        "",
        *_differences(config),
        f"- On the test image the cells found so agree with those of `dinocell segment` to an MMA of {agreement:.3f}",
        "  (1 = the same).",
        "",
        "## Validation",
        "",
        f"The ONNX weights' maps differ from PyTorch's by {onnx.difference:.2g} at most,",
        f"on values up to {onnx.largest:.3g}.",
        "On labelled images of your own: `dinocell evaluate --labels TRUE --predictions FOUND`.",
        "",
        *_training(segmenter.card.training),
    ]
    return "\n".join(lines) + "\n"


def _differences(config: PreprocessConfig) -> list[str]:
    lines = [
        "- Statistics are of what the consumer software passes at once, which may be a tile and not the whole image.",
        "- bioimageio.core takes mean and deviation before clipping, and percentiles between pixels.",
    ]
    if config.clahe:
        lines.insert(
            0, "- **CLAHE is left out: the format has no such operation.** Apply it before, or use `dinocell`."
        )
    return lines


def _training(training: Training) -> list[str]:
    if not training.datasets:
        return []
    rows = [f"| {d.name} | {d.modality} | {d.train_images} | {d.licence} | {d.source} |" for d in training.datasets]
    head = ["| dataset | modality | training images | licence | source |", "|---|---|---|---|---|"]
    return ["## Training data", "", *head, *rows]


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            archive.write(file, file.name)
    return buffer.getvalue()


def _tested(data: bytes, scratch: Path) -> str:
    """Status of bioimageio.core's test of a package.

    Raises:
        CheckpointError: it did not pass.
    """
    from bioimageio.core import test_description

    package = scratch / "package.zip"
    package.write_bytes(data)
    summary = test_description(package, weight_format="onnx", devices=["cpu"])
    if summary.status != "passed":
        found = [f"{'.'.join(map(str, e.loc))}: {e.msg}" for detail in summary.details for e in detail.errors]
        reason = " ".join("; ".join(found).split())[:500]
        raise CheckpointError(f"the package does not pass bioimageio.core's test ({summary.status}): {reason}")
    return str(summary.status)
