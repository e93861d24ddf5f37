"""Fine-tuning from a finished model: its shapes become the recipe's, its backbone and decoder the starting weights."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from dinocell.core import log
from dinocell.core.errors import ConfigError
from dinocell.finetune.config import DataConfig, FinetuneConfig
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, load_model_folder
from dinocell.models.packaged import find_model


@dataclass(frozen=True, kw_only=True)
class StartModel:
    """The model that a run starts from.

    Attributes:
        name: as the recipe names it.
        folder: that contains it.
        card: of the model.
        network: in evaluation mode, on the CPU.
    """

    name: str
    folder: Path
    card: ModelCard
    network: SegmentationModel


def open_start(config: FinetuneConfig) -> StartModel | None:
    """Load the model in `config.start`; None where the recipe names none.

    Raises:
        ConfigError: no such model. CheckpointError: it is damaged.
    """
    if not config.start:
        return None
    folder = find_model(config.start)
    network, card = load_model_folder(folder)
    return StartModel(name=config.start, folder=folder, card=card, network=network)


def adopt(config: FinetuneConfig, card: ModelCard) -> FinetuneConfig:
    """Give the recipe the crop, preprocessing, decoder, objective and backbone shape of its starting model.

    Where the recipe leaves images at their own scale, they are brought to the diameters that the model knows.
    """
    return replace(
        config,
        crop_size=card.crop_size,
        input_size=card.input_size,
        overlap=card.overlap,
        fit=card.fit,
        data=config.data if config.data.rescales else _with_limits(config.data, card),
        preprocess=card.preprocess,
        decoder=_decoder(card.decoder, config.decoder),
        objective=card.objective,
        validate=replace(config.validate, views=config.validate.views or card.views),
        backbone=replace(
            config.backbone,
            arch=card.backbone.arch,
            depth=card.backbone.depth,
            patch_size=card.backbone.patch_size,
            in_channels=1 if card.backbone.in_channels == 1 else 3,
        ),
    )


def _with_limits(data: DataConfig, card: ModelCard) -> DataConfig:
    """The diameters that the model's images were brought to: it expects no others.

    A model that rescales but does not record to which bounds gets those of its datasets.
    """
    low, high, known = card.training.min_diameter, card.training.max_diameter, card.training.diameters
    if card.rescale != "auto" or known is None:
        return data
    if not low and not high:
        low, high = math.floor(known.smallest), math.ceil(known.largest)
    return replace(data, min_diameter=float(low), max_diameter=float(high))


def _decoder(stored: DecoderConfig, recipe: DecoderConfig) -> DecoderConfig:
    """The model's decoder, with the recipe's `detail_context` where it can be added."""
    added = bool(stored.detail_width) and recipe.detail_context
    return replace(stored, detail_context=stored.detail_context or added)


def other_split(config: FinetuneConfig, names: Collection[str], card: ModelCard) -> str:
    """Warn where the starting model may have been trained on what is held out now; else "".

    Args:
        names: of the datasets of this training.
        card: of the starting model.
    """
    seed, seen = card.training.seed, sorted(set(names) & {data.name for data in card.training.datasets})
    if seed is None or seed == config.seed or not seen:
        return ""
    return (
        f"start: {config.start!r} was trained on {', '.join(seen)} with seed={seed}, this run has seed={config.seed}: "
        "where a dataset has no val split, images that it was trained on are held out now and scores on "
        f"them are too good; use seed={seed}"
    )


def start_backbone(start: StartModel, drop_path: float) -> VisionTransformer:
    """The backbone of the starting model, with the recipe's drop path."""
    backbone = VisionTransformer(replace(start.card.backbone, drop_path=drop_path))
    backbone.load_state_dict(start.network.backbone.state_dict())
    log.info(f"backbone: that of the model {start.name!r}")
    return backbone


def fill_decoder(model: SegmentationModel, start: StartModel) -> None:
    """Fill the decoder of `model` from the starting model.

    Raises:
        ConfigError: `backbone.weights` have another width than the decoder.
    """
    state = start.network.decoder.state_dict()
    if model.decoder_config.detail_context and not start.card.decoder.detail_context:
        log.info("decoder: detail_context is new; its weights start at zero")
        own = model.decoder.state_dict()
        state |= {name: own[name] for name in own if name.startswith(("detail.context.", "detail.merge_context."))}
    try:
        model.decoder.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"start: the decoder of {start.name!r} does not fit this network ({reason}); backbone.weights must be of "
            f"its architecture, {start.card.backbone.arch}"
        ) from error
    log.info(f"decoder: that of the model {start.name!r}")
