"""Going on from a finished model: its shapes become the recipe's, its backbone and decoder the starting weights."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinocell.core import log
from dinocell.core.config import from_dict
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.finetune.config import DataConfig, FinetuneConfig
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import DecoderConfig, SegmentationModel, VisionTransformer, ViTConfig, load_model_folder
from dinocell.models.folder import CONFIG_NAME
from dinocell.models.packaged import find_model
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation.diameter import training_diameters


def adopt(config: FinetuneConfig) -> FinetuneConfig:
    """The recipe with the crop, preprocessing, decoder, objective and backbone shape of the model in `config.start`.

    Where the recipe leaves images at their own scale, they are brought to the diameters that the model knows.

    Raises:
        ConfigError: no such model. CheckpointError: its config.json cannot be read.
    """
    if not config.start:
        return config
    meta = model_meta(find_model(config.start))
    crop = int(meta["crop_size"])
    vit = from_dict(ViTConfig, meta["backbone"])
    if vit.in_channels not in (1, 3):
        raise ConfigError(f"start: {config.start!r} takes {vit.in_channels} channels; models of 1 or 3 can be trained")
    return replace(
        config,
        crop_size=crop,
        input_size=int(meta["input_size"]),
        overlap=int(meta.get("overlap", crop // 4)),
        fit=meta.get("fit", "tile"),
        data=config.data if config.data.rescales else _with_limits(config.data, meta),
        preprocess=from_dict(PreprocessConfig, meta.get("preprocess") or {}),
        decoder=_decoder(from_dict(DecoderConfig, meta["decoder"]), config.decoder),
        objective=from_dict(ObjectiveConfig, meta.get("objective") or {}),
        validate=replace(config.validate, views=config.validate.views or int(meta.get("views", 1))),
        backbone=replace(
            config.backbone,
            arch=vit.arch,
            depth=vit.depth,
            patch_size=vit.patch_size,
            in_channels=1 if vit.in_channels == 1 else 3,
        ),
    )


def _with_limits(data: DataConfig, meta: dict[str, Any]) -> DataConfig:
    """The diameters that the model's images were brought to: it expects no others.

    A model that rescales but does not say to what gets those of its data sets.
    """
    training, known = meta.get("training") or {}, training_diameters(meta)
    if meta.get("rescale") != "auto" or known is None:
        return data
    low, high = training.get("min_diameter"), training.get("max_diameter")
    if not low and not high:
        low, high = math.floor(known.smallest), math.ceil(known.largest)
    return replace(data, min_diameter=float(low or 0), max_diameter=float(high or 0))


def _decoder(stored: DecoderConfig, recipe: DecoderConfig) -> DecoderConfig:
    """The model's decoder, with the recipe's `detail_context` where it can be added."""
    added = bool(stored.detail_width) and recipe.detail_context
    return replace(stored, detail_context=stored.detail_context or added)


def model_meta(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ConfigError: there is none. CheckpointError: it is damaged.
    """
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give a model folder, such as runs/finetune/model")
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not a model configuration ({error})") from error
    missing = [key for key in ("crop_size", "input_size", "backbone", "decoder") if key not in meta]
    if missing:
        raise CheckpointError(f"{file}: not a model configuration (no {missing[0]!r})")
    return meta


def other_split(config: FinetuneConfig, names: Collection[str]) -> str:
    """A warning where the model in `config.start` may have been trained on what is held out now; else "".

    Args:
        names: of the data sets of this training.
    """
    training = model_meta(find_model(config.start)).get("training") or {} if config.start else {}
    seen = sorted(set(names) & {str(entry.get("name")) for entry in training.get("datasets") or ()})
    seed = training.get("seed")
    if seed is None or seed == config.seed or not seen:
        return ""
    return (
        f"start: {config.start!r} was trained on {', '.join(seen)} with seed={seed}, this run has seed={config.seed}: "
        "where a data set has no val split of its own, images that it was trained on are held out now and scores on "
        f"them are too good; use seed={seed}"
    )


def start_backbone(config: FinetuneConfig) -> VisionTransformer:
    """The backbone of the model in `config.start`, with the recipe's drop path."""
    stored, _ = load_model_folder(find_model(config.start))
    backbone = VisionTransformer(replace(stored.backbone.config, drop_path=config.backbone.drop_path))
    backbone.load_state_dict(stored.backbone.state_dict())
    log.info(f"backbone: that of the model {config.start!r}")
    return backbone


def load_decoder(config: FinetuneConfig, model: SegmentationModel) -> None:
    """Fill the decoder of `model` from the model in `config.start`.

    Raises:
        ConfigError: `backbone.weights` have another width than the decoder.
    """
    stored, _ = load_model_folder(find_model(config.start))
    state = stored.decoder.state_dict()
    if model.decoder_config.detail_context and not stored.decoder_config.detail_context:
        log.info("decoder: detail_context is new and starts without a say")
        own = model.decoder.state_dict()
        state |= {name: own[name] for name in own if name.startswith(("detail.context.", "detail.merge_context."))}
    try:
        model.decoder.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"start: the decoder of {config.start!r} does not fit this network ({reason}); backbone.weights must be of "
            f"its architecture, {stored.backbone.config.arch}"
        ) from error
    log.info(f"decoder: that of the model {config.start!r}")
