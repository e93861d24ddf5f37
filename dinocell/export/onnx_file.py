"""A trained network as ONNX: crops of the size it was trained on in, raw maps out; compared with PyTorch.

The file contains the network alone. Preprocessing, windows and decoding stay outside; its metadata say what they are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinocell import __version__
from dinocell.core import log
from dinocell.core.arrays import Float32
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import atomic_write_bytes
from dinocell.core.records import as_json
from dinocell.datasets.synthetic.sample import make_image
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane
from dinocell.models import ModelCard, SegmentationModel, VisionTransformer, load_model_folder
from dinocell.models.packaged import export_folder, find_model
from dinocell.models.vit.vision_transformer import GRAY_MEAN, GRAY_STD
from dinocell.models.weights.load import positions_at_grid
from dinocell.objectives import build_objective

INPUT, OUTPUT = "input", "maps"
NEEDED = ("onnx", "onnxscript")
TOLERANCE = 1e-3
"""Largest difference from PyTorch, as a part of the largest output, that is accepted."""
MAX_BYTES = 2**31 - 2**24
"""What fits in one ONNX file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """Result of an export.

    Attributes:
        path: of the file.
        opset: ONNX operator set.
        batch: crops per call, None for any number.
        difference: largest absolute difference from PyTorch's output; None without onnxruntime.
        largest: largest absolute output that this was measured on.
    """

    path: Path
    opset: int
    batch: int | None
    difference: float | None
    largest: float

    def __str__(self) -> str:
        batch = "any number" if self.batch is None else str(self.batch)
        said = f"{self.path}: opset {self.opset}, {batch} of crops per call"
        if self.difference is None:
            return f"{said}; not verified against PyTorch: onnxruntime is not installed: pip install 'dinocell[onnx]'"
        return f"{said}; differs from PyTorch by at most {self.difference:.2g}, on outputs up to {self.largest:.3g}"


class FixedSize(nn.Module):
    """A `SegmentationModel` for crops of `crop_size` alone, of operations that every ONNX runtime has.

    Resizing becomes two matrix products (exact, also where it antialiases) and the position grid is the input's own.
    """

    resize: Tensor | None
    rgb_mean: Tensor
    rgb_std: Tensor

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.grid = model.input_size // model.backbone.patch_size
        self.backbone = _at_grid(model.backbone, model.input_size)
        self.decoder = model.decoder
        self.register_buffer("rgb_mean", model.rgb_mean, persistent=False)
        self.register_buffer("rgb_std", model.rgb_std, persistent=False)
        resize = None if model.input_size == model.crop_size else _resizing(model.crop_size, model.input_size)
        self.register_buffer("resize", resize, persistent=False)
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        """As `SegmentationModel.forward`: [B, 1, crop, crop] → [B, K, crop, crop]."""
        x = z if self.resize is None else self.resize @ z @ self.resize.T
        x = x * GRAY_STD + GRAY_MEAN
        if self.backbone.in_channels != 1:
            x = (x - self.rgb_mean) / self.rgb_std
        tokens = self.backbone.forward_features(x)["x_norm_patchtokens"]
        maps: Tensor = self.decoder(tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid)), z)
        return maps


def _resizing(old: int, new: int) -> Tensor:
    """The linear map [new, old] that bicubic resizing is along one axis."""
    eye = torch.eye(old, dtype=torch.float64).reshape(1, 1, old, old)
    columns = F.interpolate(eye, size=(new, old), mode="bicubic", align_corners=False, antialias=new < old)
    return columns[0, 0].float()


def _at_grid(backbone: VisionTransformer, side: int) -> VisionTransformer:
    """The backbone with positions stored for images of `side` px."""
    config = dataclasses.replace(backbone.config, image_size=side, drop_path=0.0)
    state = dict(backbone.state_dict())
    if config.grid != backbone.config.grid:
        state["pos_embed"] = positions_at_grid(state["pos_embed"], config)
    fixed = VisionTransformer(config)
    fixed.load_state_dict(state)
    return fixed


def export_onnx(
    model: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None = None, *, batch: int | None = None
) -> OnnxFile:
    """Write a trained model as one ONNX file, compared with PyTorch where onnxruntime is installed.

    Args:
        model: a model folder, a run folder of fine-tuning, a packaged name; None for the default model.
        out: the file, or a folder for `model.onnx`; default: inside the model folder, or the working
            directory for a packaged model.
        batch: crops per call; None leaves it open.

    Raises:
        ConfigError: no such model, the `onnx` extra is missing, or the weights exceed an ONNX file's 2 GB.
        CheckpointError: damaged weights, or onnxruntime gives other values than PyTorch.
    """
    require(NEEDED, "onnx")
    folder = find_model(model)
    network, card = load_model_folder(folder)
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > MAX_BYTES:
        raise ConfigError(f"{folder}: {size / 2**30:.1f} GB of weights do not fit an ONNX file, which ends at 2 GB")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch: at least 1, got {batch}; leave it out for any number")
    target = Path(out) if out is not None else export_folder(folder)
    target = target if target.suffix == ".onnx" else target / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    data, opset = _convert(network, card, batch)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as scratch:
        unchecked = Path(scratch, "model.onnx")
        unchecked.write_bytes(data)
        difference, largest = compare(unchecked, network, card.preprocess, batch)
        atomic_write_bytes(target, data)
    written = OnnxFile(path=target, opset=opset, batch=batch, difference=difference, largest=largest)
    log.info(str(written))
    return written


def require(modules: tuple[str, ...], extra: str) -> None:
    """Raise ConfigError where a module is missing, with the extra that installs it."""
    missing = [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None]
    if missing:
        raise ConfigError(
            f"export: needs {' and '.join(missing)}, which is not installed: pip install 'dinocell[{extra}]'"
        )


def _convert(network: SegmentationModel, card: ModelCard, batch: int | None) -> tuple[bytes, int]:
    """The bytes of an ONNX file, and its operator set."""
    import onnx

    fixed = FixedSize(network)
    example = torch.zeros(batch or 2, 1, network.crop_size, network.crop_size)
    shapes = None if batch is not None else {"z": {0: torch.export.Dim("batch")}}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), _quiet():
        path = Path(scratch, "model.onnx")
        torch.onnx.export(
            fixed,
            (example,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
        model = onnx.load(path)
    about = describe(card)
    model.producer_name, model.producer_version = "dinocell", __version__
    model.doc_string = " ".join(about["preprocessing"])
    onnx.helper.set_model_props(model, {"dinocell": json.dumps(about)})
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model.SerializeToString(), opset


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of packages that are not needed and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def describe(card: ModelCard) -> dict[str, Any]:
    """Collect what a program needs to use the network: preprocessing in words and numbers, windows, maps, decoding."""
    steps = preprocessing_steps(card.preprocess, card.crop_size)
    if card.rescales and card.training.diameter:
        steps.insert(0, f"0. Resized so that cells are about {card.training.diameter:.0f} px in diameter.")
    return {
        "preprocessing": steps,
        "preprocess": dataclasses.asdict(card.preprocess),
        "crop_size": card.crop_size,
        "overlap": card.overlap,
        "fit": card.fit,
        "maps": list(build_objective(card.objective).channels),
        "activation": "none: raw maps",
        "objective": dataclasses.asdict(card.objective),
        "training": as_json(card.training),
        "dinocell": __version__,
    }


def preprocessing_steps(config: PreprocessConfig, crop: int) -> list[str]:
    """Preprocessing of an image, one sentence per step."""
    steps = [
        "1. One gray plane of any number type; colour images as luma.",
        f"2. Percentiles {config.percentile_low:g} and {config.percentile_high:g} of the image to 0 and 1, clipped.",
        f"3. CLAHE of the whole image, {config.clahe_tiles} x {config.clahe_tiles} tiles, clip {config.clahe_clip:g}.",
        "4. Zero mean and unit variance over the whole image.",
        f"5. Windows of {crop} x {crop} px as [batch, 1, {crop}, {crop}] float32.",
    ]
    return steps if config.clahe else [*steps[:2], *steps[3:]]


def compare(
    path: Path, network: SegmentationModel, preprocess: PreprocessConfig, batch: int | None
) -> tuple[float | None, float]:
    """Largest absolute difference between onnxruntime and PyTorch, and largest output; None without onnxruntime.

    Raises:
        CheckpointError: the difference is more than rounding.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None, 0.0
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    for z in _examples(network.crop_size, preprocess, batch):
        with torch.no_grad():
            expected = network(torch.from_numpy(z)).numpy()
        found = session.run([OUTPUT], {INPUT: z})[0]
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    if not difference <= TOLERANCE * largest:
        raise CheckpointError(
            f"{path.name}: onnxruntime's maps differ from PyTorch's by up to {difference:.3g} on outputs up to "
            f"{largest:.3g}; nothing was written. Other versions of torch, onnx or onnxruntime may agree"
        )
    return difference, largest


def _examples(crop: int, preprocess: PreprocessConfig, batch: int | None) -> Iterator[Float32]:
    """Inputs to compare on: generated cells, and noise; of several batch sizes where that is open."""
    cells = preprocess_plane(make_image(2, crop, "phase")[0], preprocess)[None, None]
    for count in (batch,) if batch is not None else (1, 3):
        yield np.repeat(cells, count, axis=0)
        yield np.random.default_rng(count).standard_normal((count, 1, crop, crop), np.float32)
