"""The model folder: everything inference needs, with where it comes from written beside it."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dinocell.core.config import from_dict
from dinocell.core.files import atomic_write_text, sha256_of
from dinocell.datasets.labelled import DatasetInfo, LabelledItem
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.checks import CellSizes
from dinocell.finetune.validate.tuning import Tuning, tuned_fields
from dinocell.finetune.validate.validator import Validation
from dinocell.models import SegmentationModel, save_model
from dinocell.models.packaged import find_model
from dinocell.objectives import ObjectiveConfig, build_objective

CARD_NAME = "MODEL_CARD.md"
LIMITS = (
    "Scores are on the val split of the training data sets; images of another microscope, stain or cell type can "
    "score far lower. The licences of the training data may restrict what the model is used for."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a model was trained on: dataset descriptions with their numbers of training images, the sizes of the cells,
    and its starting weights."""

    datasets: tuple[tuple[DatasetInfo, int], ...]
    initial_weights: str
    initial_sha256: str
    sizes: CellSizes


def provenance(items: Sequence[LabelledItem], config: FinetuneConfig, sizes: CellSizes) -> Provenance:
    """Describe training items and starting weights (folders and checksums only, no images)."""
    counts: dict[DatasetInfo, int] = {}
    for item in items:
        counts[item.dataset] = counts.get(item.dataset, 0) + 1
    weights = Path(config.backbone.weights) if config.backbone.weights else None
    if weights is None and config.start:
        weights = find_model(config.start)
    if weights is not None and weights.is_dir():
        weights = next(iter(sorted(weights.glob("*.safetensors"))), None)
    known = weights is not None and weights.is_file()
    return Provenance(
        datasets=tuple(counts.items()),
        initial_weights=config.backbone.weights or config.start or "random",
        initial_sha256=sha256_of(weights) if known and weights is not None else "",
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
        decoding: what `dinocell segment` and `evaluate` will use.
        tuning: how `decoding` was chosen on the val split, if it was.
    """
    meta: dict[str, Any] = {
        "format": 1,
        "preprocess": dataclasses.asdict(config.preprocess),
        "objective": dataclasses.asdict(decoding),
        "overlap": config.overlap,
        "views": config.validate.views or 1,
        "fit": config.fit,
        # Trained on images brought to one size of cells, a model wants to be shown such images.
        "rescale": "auto" if config.data.rescales and build_objective(config.objective).cell_check else "own",
        "training": {
            "step": step,
            "min_diameter": config.data.min_diameter,
            "max_diameter": config.data.max_diameter,
            "diameter": origin.sizes.diameter,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "initial_weights": Path(origin.initial_weights).name,
            "initial_weights_sha256": origin.initial_sha256,
            "datasets": [
                {
                    **dataclasses.asdict(info),
                    "train_images": count,
                    "diameter": origin.sizes.diameters.get(info.name),
                    "scale": origin.sizes.scales.get(info.name),
                }
                for info, count in origin.datasets
            ],
            "seed": config.seed,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "validation": {
            "mean": _plain(validation.metrics()) if validation else {},
            "mean_is": validation.mean_name if validation else "",
            "by_dataset": {k: _plain(v) for k, v in validation.by_dataset().items()} if validation else {},
            "tuning": tuning.as_json() if tuning else None,
        },
    }
    save_model(directory, model, meta)
    atomic_write_text(directory / CARD_NAME, card_text(model, config, origin, meta, tuning))
    return directory


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN (the loss of images where everything is ignored) becomes null: JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def card_text(
    model: SegmentationModel,
    config: FinetuneConfig,
    origin: Provenance,
    meta: Mapping[str, Any],
    tuning: Tuning | None,
) -> str:
    """The model card in Markdown."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    network = f"{model.backbone.config.arch}/{model.backbone.patch_size} backbone, {config.decoder.kind} decoder"
    lines = [
        "# DINOCell model",
        "",
        f"{network}, {parameters:.1f} M parameters, objective `{build_objective(config.objective).name}`.",
        f"Input: crops of {model.crop_size} px, resized to {model.input_size} px, with {config.overlap} px of overlap.",
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
        f"| {d.name} | {d.modality} | {n} | {'yes' if d.fully_annotated else 'no'} | {d.licence} | {d.source} |"
        for d, n in origin.datasets
    ]
    start = Path(origin.initial_weights).name
    checksum = f" (sha256 {origin.initial_sha256[:16]}…)" if origin.initial_sha256 else ""
    training = meta["training"]
    lines += [
        "",
        f"Starting weights: {start}{checksum}. Step {training['step']}, {training['date']}, seed {config.seed}.",
        "",
        *_score_lines(meta["validation"]),
        *_decoding_lines(meta["objective"], tuning),
        "## Limits",
        "",
        LIMITS,
        "",
    ]
    return "\n".join(lines)


def _score_lines(validation: Mapping[str, Any]) -> list[str]:
    if not validation["mean"]:
        return ["No images were validated.", ""]
    rows = {**validation["by_dataset"], validation["mean_is"]: validation["mean"]}
    names = [name for name in validation["mean"] if name not in ("loss", "mean")]
    lines = ["## Scores on the val split", "", f"| data set | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(f'{values[n]:.3f}' for n in names)} |" for row, values in rows.items()]
    return [*lines, ""]


def _decoding_lines(objective: Mapping[str, Any], tuning: Tuning | None) -> list[str]:
    lines = ["## Decoding", ""]
    if tuning is not None:
        lines += [f"{tuning.sentence()}. The scores above are with these values, and so a little optimistic.", ""]
    else:
        fields = ", ".join(
            f"{name} {objective[name]:g}" for name in tuned_fields(from_dict(ObjectiveConfig, objective))
        )
        lines += [f"Not tuned: {fields}.", ""]
    return [*lines, "`config.json` holds the values under `objective`; they may be edited there.", ""]
