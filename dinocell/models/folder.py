"""Model folders: `model.safetensors` and `config.json`, all that inference needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dinocell.core.config import from_dict
from dinocell.core.errors import CheckpointError, ConfigError, DinoCellError
from dinocell.core.files import atomic_write_bytes, atomic_write_text
from dinocell.models.decoder import DecoderConfig
from dinocell.models.network import SegmentationModel
from dinocell.models.vit.vision_transformer import VisionTransformer, ViTConfig
from dinocell.models.weights.layouts import read_safetensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


def save_model(directory: str | Path, model: SegmentationModel, meta: Mapping[str, Any], *, half: bool = False) -> Path:
    """Write `model.safetensors` and `config.json`, all that inference needs, into `directory` (made if absent).

    Args:
        meta: what else inference needs to know (preprocess, objective, training…), as plain JSON values.
        half: store matrices and filters in float16 (see `halved`); they are float32 again when they are loaded.

    Returns:
        The directory.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()}
    if half:
        state = halved(state, str(directory / WEIGHTS_NAME))
    config = {
        **meta,
        "backbone": dataclasses.asdict(model.backbone.config),
        "decoder": dataclasses.asdict(model.decoder_config),
        "channels": model.channels,
        "crop_size": model.crop_size,
        "input_size": model.input_size,
    }
    atomic_write_bytes(directory / WEIGHTS_NAME, save(state))
    atomic_write_text(directory / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
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
            raise CheckpointError(f"{where}: {name} holds values beyond ±{limit:g} or NaN; keep this model in float32")
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


def load_model_folder(
    directory: str | Path, device: str | torch.device = "cpu"
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Read what `save_model` wrote: the model in evaluation mode, float32, on `device`, and config.json's content.

    Raises:
        ConfigError: the folder or a file in it is missing.
        CheckpointError: a file is damaged, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory / name}: no such file; a model folder holds {WEIGHTS_NAME}, {CONFIG_NAME}")
    try:
        meta: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        with torch.device("meta"):  # no time for random values that are replaced
            backbone = VisionTransformer(from_dict(ViTConfig, meta["backbone"]))
        decoder = from_dict(DecoderConfig, meta["decoder"])
        model = SegmentationModel(backbone, decoder, meta["channels"], meta["crop_size"], meta["input_size"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, DinoCellError) as error:
        raise CheckpointError(f"{directory / CONFIG_NAME}: not a model configuration ({error})") from error
    state, _ = read_safetensors(directory / WEIGHTS_NAME)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{directory / WEIGHTS_NAME}: does not fit its {CONFIG_NAME}: {reason}") from error
    return model.to(device).eval(), meta
