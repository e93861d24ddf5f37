"""Model folder of a run: everything inference needs, and its provenance."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from dinocell.core.files import atomic_write_text, sha256_of
from dinocell.datasets.labelled import DatasetInfo, LabelledItem
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.checks import CellSizes
from dinocell.finetune.from_model import StartModel
from dinocell.finetune.validate.tuning import Tuning, tuned_fields
from dinocell.finetune.validate.validator import Validation
from dinocell.models import ModelCard, SegmentationModel, save_model
from dinocell.models.training_record import ScoreTable, Training, TrainingData
from dinocell.objectives import ObjectiveConfig, build_objective

CARD_NAME = "MODEL_CARD.md"
LIMITS = (
    "Scores are on the val split of the training datasets; images of another microscope, stain or cell type can "
    "score far lower. The licences of the training data may restrict what the model is used for."
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a model.

    Attributes:
        datasets: each training dataset with its number of training images.
        initial_weights: file or model that the run started from, or `random`.
        initial_sha256: checksum of that file; "" where it is not known.
        sizes: of the training cells.
    """

    datasets: tuple[tuple[DatasetInfo, int], ...]
    initial_weights: str
    initial_sha256: str
    sizes: CellSizes


def provenance(
    items: Sequence[LabelledItem], config: FinetuneConfig, sizes: CellSizes, start: StartModel | None
) -> Provenance:
    """Describe training items and starting weights (folders and checksums only, no images)."""
    counts: dict[DatasetInfo, int] = {}
    for item in items:
        counts[item.dataset] = counts.get(item.dataset, 0) + 1
    weights = Path(config.backbone.weights) if config.backbone.weights else None
    if weights is None and start is not None:
        weights = start.folder
    if weights is not None and weights.is_dir():
        weights = next(iter(sorted(weights.glob("*.safetensors"))), None)
    return Provenance(
        datasets=tuple(counts.items()),
        initial_weights=config.backbone.weights or config.start or "random",
        initial_sha256=sha256_of(weights) if weights is not None and weights.is_file() else "",
        sizes=sizes,
    )


def write_model_folder(
    directory: Path,
    model: SegmentationModel,
    config: FinetuneConfig,
    origin: Provenance,
    *,
    step: int,
    validation: Validation | None,
    decoding: ObjectiveConfig,
    tuning: Tuning | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and `MODEL_CARD.md`.

    Args:
        validation: of these weights on the val split, with `decoding`.
        decoding: settings that `dinocell segment` and `evaluate` will use.
        tuning: how `decoding` was chosen on the val split, if it was.
    """
    card = ModelCard(
        crop_size=config.crop_size,
        overlap=config.overlap,
        views=config.validate.views or 1,
        fit=config.fit,
        # Trained on images brought to one size of cells, a model needs such images.
        rescale="auto" if config.data.rescales and build_objective(config.objective).cell_check else "own",
        preprocess=config.preprocess,
        objective=decoding,
        training=_training(config, origin, step),
        validation=_validation(validation, tuning),
    ).of_network(model)
    save_model(directory, model, card)
    atomic_write_text(directory / CARD_NAME, card_text(model, card, tuning))
    return directory


def _training(config: FinetuneConfig, origin: Provenance, step: int) -> Training:
    return Training(
        step=step,
        diameter=origin.sizes.diameter,
        min_diameter=config.data.min_diameter,
        max_diameter=config.data.max_diameter,
        datasets=tuple(
            TrainingData(
                **asdict(info),
                train_images=count,
                diameter=origin.sizes.diameters.get(info.name),
                scale=origin.sizes.scales.get(info.name),
            )
            for info, count in origin.datasets
        ),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        initial_weights=Path(origin.initial_weights).name,
        initial_weights_sha256=origin.initial_sha256,
        seed=config.seed,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _validation(validation: Validation | None, tuning: Tuning | None) -> ScoreTable:
    chosen = tuning.as_json() if tuning else None
    if validation is None:
        return ScoreTable(tuning=chosen)
    rows = {name: _plain(scores) for name, scores in validation.by_dataset().items()}
    return ScoreTable(mean=_plain(validation.metrics()), mean_is=validation.mean_name, by_dataset=rows, tuning=chosen)


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN (the loss of images where everything is ignored) becomes null: JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def card_text(model: SegmentationModel, card: ModelCard, tuning: Tuning | None) -> str:
    """The model card in Markdown."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    network = f"{card.backbone.arch}/{card.backbone.patch_size} backbone, {card.decoder.kind} decoder"
    training = card.training
    lines = [
        "# DINOCell model",
        "",
        f"{network}, {parameters:.1f} M parameters, objective `{build_objective(card.objective).name}`.",
        f"Input: crops of {card.crop_size} px, resized to {card.input_size} px, with {card.overlap} px of overlap.",
        "",
        "```",
        "dinocell segment IMAGES --out RESULTS --model THIS_FOLDER",
        "```",
        "",
        "## Training data",
        "",
        "| dataset | modality | training images | fully annotated | licence | source |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {d.name} | {d.modality} | {d.train_images} | {'yes' if d.fully_annotated else 'no'} | {d.licence} "
        f"| {d.source} |"
        for d in training.datasets
    ]
    checksum = f" (sha256 {training.initial_weights_sha256[:16]}…)" if training.initial_weights_sha256 else ""
    kept = f"Step {training.step}, {training.date}, seed {training.seed}."
    lines += [
        "",
        f"Starting weights: {training.initial_weights}{checksum}. {kept}",
        "",
        *_score_lines(card.validation),
        *_decoding_lines(card.objective, tuning),
        "## Limits",
        "",
        LIMITS,
        "",
    ]
    return "\n".join(lines)


def _score_lines(validation: ScoreTable) -> list[str]:
    if not validation.mean:
        return ["No images were validated.", ""]
    rows = {**validation.by_dataset, validation.mean_is: validation.mean}
    names = [name for name in validation.mean if name not in ("loss", "mean")]
    lines = ["## Scores on the val split", "", f"| dataset | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(f'{values[n]:.3f}' for n in names)} |" for row, values in rows.items()]
    return [*lines, ""]


def _decoding_lines(objective: ObjectiveConfig, tuning: Tuning | None) -> list[str]:
    lines = ["## Decoding", ""]
    if tuning is not None:
        lines += [f"{tuning.sentence()}. The scores above are with these values, and so a little optimistic.", ""]
    else:
        fields = ", ".join(f"{name} {getattr(objective, name):g}" for name in tuned_fields(objective))
        lines += [f"Not tuned: {fields}.", ""]
    return [*lines, "`config.json` contains the values under `objective`; they may be edited there.", ""]
