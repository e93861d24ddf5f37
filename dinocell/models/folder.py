"""Model folders: `model.safetensors` and `config.json`, all that inference needs; `ModelCard` is the latter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from dinocell.core.errors import CheckpointError, ConfigError, DinoCellError
from dinocell.core.files import atomic_write_bytes, atomic_write_text
from dinocell.core.records import as_json, read_record
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models.decoder import DecoderConfig
from dinocell.models.network import SegmentationModel
from dinocell.models.training_record import ScoreTable, Training
from dinocell.models.vit.vision_transformer import VisionTransformer, ViTConfig
from dinocell.models.weights.tensors import read_safetensors
from dinocell.objectives import ObjectiveConfig

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT = 1
OVERLAP = 128
VIEWS = (1, 2, 4, 8)

Fit = Literal["tile", "resize", "pad"]
"""tile: windows at the image's scale; resize: the image squashed to one window; pad: shrunk with its aspect, filled.

Resizing and padding are for class maps (objective semantic), where a small view of the whole field is enough; instances
need the image's own scale, which tiles keep.
"""
Rescale = Literal["own", "auto"]
"""own: images at their own scale; auto: brought to the training cells' size, which is estimated in each image."""
Windows = Literal["spread"]
"""spread: the fewest windows that cover an axis, evenly spread over it."""
Preprocessed = Literal["image"]
"""image: percentiles, CLAHE and statistics of the whole image, before it is cut into windows."""
Enlargement = Literal["cubic-0.75"]
"""cubic-0.75: bicubic with a = -0.75 (OpenCV's)."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything in a model folder's config.json; absent keys have the defaults given here, and nowhere else.

    Attributes:
        format: version of the layout.
        crop_size: side of a window, px at the model's scale.
        input_size: side that a window is resized to for the backbone, px; 0 becomes `crop_size`.
        channels: number of maps K.
        overlap: fewest pixels that neighbouring windows share; -1 becomes 128, at most a quarter of the window.
        views: turned and mirrored views of each window whose maps are averaged (test-time augmentation).
        fit: how an image meets the window.
        rescale: scale at which images are shown.
        windows: rule that places windows.
        preprocessed: what gray values are normalised over.
        enlargement: kernel that enlarges images.
        preprocess: how gray values are normalised.
        objective: meaning and decoding of the maps.
        backbone, decoder: shapes of the network.
        training: data, cell sizes and starting weights.
        validation: scores on the val split.
        test: scores on test splits; empty where they were not measured.
        licence: of the weights, an SPDX name; "" if it is not recorded.
        adaptation: how `dinocell adapt` chose this model, where it did.
        other: keys of config.json that this version does not know; they are written back as they were.
    """

    format: int = FORMAT
    crop_size: int
    input_size: int = 0
    channels: int = 1
    overlap: int = -1
    views: int = 1
    fit: Fit = "tile"
    rescale: Rescale = "own"
    windows: Windows = "spread"
    preprocessed: Preprocessed = "image"
    enlargement: Enlargement = "cubic-0.75"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    backbone: ViTConfig = field(default_factory=ViTConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: Training = field(default_factory=Training)
    validation: ScoreTable = field(default_factory=ScoreTable)
    test: ScoreTable = field(default_factory=ScoreTable)
    licence: str = ""
    adaptation: Mapping[str, Any] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise ConfigError(f"format: {self.format} is newer than this DINOCell, which reads {FORMAT}; update it")
        for name in ("crop_size", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.views not in VIEWS:
            raise ConfigError(f"views: {self.views}; choose one of {', '.join(map(str, VIEWS))}")
        object.__setattr__(self, "input_size", self.input_size or self.crop_size)
        if self.overlap == -1:
            object.__setattr__(self, "overlap", min(OVERLAP, self.crop_size // 4))
        if not 0 <= self.overlap < self.crop_size:
            raise ConfigError(
                f"overlap: must lie in 0…{self.crop_size - 1} px (the window is {self.crop_size} px), "
                f"got {self.overlap}"
            )

    @property
    def rescales(self) -> bool:
        """True if the model was trained on images brought to one size of cells, and so brings new ones to it."""
        return self.fit == "tile" and self.rescale == "auto"

    def of_network(self, network: SegmentationModel) -> ModelCard:
        """The card with the sizes and shapes of a network."""
        assert network.crop_size == self.crop_size, "the overlap belongs to the crop"
        return replace(
            self,
            input_size=network.input_size,
            channels=network.channels,
            backbone=network.backbone.config,
            decoder=network.decoder_config,
        )

    @classmethod
    def read(cls, folder: str | Path) -> ModelCard:
        """Read the card of a model folder.

        Raises:
            ConfigError: there is none.
            CheckpointError: it is damaged, lacks the network's shape, or contains an unknown value.
        """
        file = Path(folder) / CONFIG_NAME
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; give a model folder, such as runs/finetune/model")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            card = read_record(cls, content)
            missing = [key for key in ("input_size", "channels", "backbone", "decoder") if key not in content]
        except (ValueError, DinoCellError, OverflowError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: not a model configuration ({reason})") from error
        if missing:
            raise CheckpointError(f"{file}: not a model configuration ({missing[0]}: is missing)")
        return card

    def write(self, folder: str | Path) -> Path:
        """Write the card into a model folder; returns the file."""
        file = Path(folder) / CONFIG_NAME
        atomic_write_text(file, json.dumps(as_json(self), indent=2) + "\n")
        return file


def is_model_folder(folder: str | Path) -> bool:
    """True if a folder contains a model card; it may still be damaged."""
    return (Path(folder) / CONFIG_NAME).is_file()


def backbone_beside(weights: Path) -> ViTConfig | None:
    """The backbone's configuration in the model folder that a weights file lies in; None where it lies in none.

    Raises:
        CheckpointError: the card is damaged.
    """
    file = weights.with_name(CONFIG_NAME)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); get the file again") from error
    ours = isinstance(content, Mapping) and {"backbone", "decoder", "crop_size"} <= set(content)
    return ModelCard.read(file.parent).backbone if ours else None


def save_model(directory: str | Path, network: SegmentationModel, card: ModelCard, *, half: bool = False) -> Path:
    """Write a network and its card, all that inference needs, into `directory` (made if absent).

    Args:
        card: what else inference needs to know; sizes and shapes are the network's own.
        half: store matrices and filters in float16 (see `halved`); they are float32 again when they are loaded.

    Returns:
        The directory.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in network.state_dict().items()}
    if half:
        state = halved(state, str(directory / WEIGHTS_NAME))
    atomic_write_bytes(directory / WEIGHTS_NAME, save(state))
    card.of_network(network).write(directory)
    return directory


def halved(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of two and more dimensions in float16; scales and biases, next to nothing in size, stay float32.

    A LayerScale of 1e-5 would keep only two digits in float16.

    Raises:
        CheckpointError: a value does not fit float16; `where` names the file.
    """
    limit = torch.finfo(torch.float16).max
    for name, value in state.items():
        if value.ndim > 1 and not bool((value.abs() <= limit).all()):
            raise CheckpointError(
                f"{where}: {name} contains values beyond ±{limit:g} or NaN; keep this model in float32"
            )
    return {name: value.to(torch.float16) if value.ndim > 1 else value for name, value in state.items()}


def halve_model_folder(source: str | Path, target: str | Path) -> Path:
    """Write a model folder again with half the weights' size (see `halved`); config.json and cards are copied as is.

    Args:
        source: a model folder; it is not touched.
        target: another folder, made if absent.

    Returns:
        The target.

    Raises:
        ConfigError: the folders are the same, or `source` lacks a file.
        CheckpointError: damaged weights, or a value does not fit float16.
    """
    source, target = Path(source), Path(target)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the model itself; float16 cannot be undone, so name another folder")
    load_model_folder(source)  # what does not load is not passed on
    state, _ = read_safetensors(source / WEIGHTS_NAME)
    small = save(halved(state, str(source / WEIGHTS_NAME)))
    target.mkdir(parents=True, exist_ok=True)
    for card in sorted(source.glob("*.md")):
        atomic_write_bytes(target / card.name, card.read_bytes())
    atomic_write_bytes(target / WEIGHTS_NAME, small)
    atomic_write_bytes(target / CONFIG_NAME, (source / CONFIG_NAME).read_bytes())
    return target


def load_model_folder(directory: str | Path, device: str | torch.device = "cpu") -> tuple[SegmentationModel, ModelCard]:
    """Read what `save_model` wrote: the network in evaluation mode, float32, on `device`, and its card.

    Raises:
        ConfigError: the folder or a file in it is missing.
        CheckpointError: a file is damaged, or the weights do not fit the card.
    """
    directory = Path(directory)
    card = ModelCard.read(directory)
    if not (directory / WEIGHTS_NAME).is_file():
        raise ConfigError(f"{directory / WEIGHTS_NAME}: no such file; a model folder needs it beside {CONFIG_NAME}")
    try:
        with torch.device("meta"):  # no time for random values that are replaced
            backbone = VisionTransformer(card.backbone)
        network = SegmentationModel(backbone, card.decoder, card.channels, card.crop_size, card.input_size)
    except (TypeError, DinoCellError) as error:
        raise CheckpointError(f"{directory / CONFIG_NAME}: not a model configuration ({error})") from error
    state, _ = read_safetensors(directory / WEIGHTS_NAME)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{directory / WEIGHTS_NAME}: does not fit its {CONFIG_NAME}: {reason}") from error
    return network.to(device).eval(), card
