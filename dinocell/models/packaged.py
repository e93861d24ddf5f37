"""Packaged models, which come with the installation: names, folders and descriptions.

A packaged model is a folder `dinocell/models/packaged/NAME` of `model.safetensors`, `config.json` and `README.md` (the
model card). Nothing is ever downloaded: a name that is not here is an error.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import local_path
from dinocell.models.folder import WEIGHTS_NAME, ModelCard, is_model_folder
from dinocell.models.training_record import Scores, ScoreTable

PACKAGED = Path(__file__).parent / "packaged"
DEFAULT = "cells"
SCORES = ("MMA", "SEG", "DET", "AP50", "AP75", "PQ")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as `dinocell models` lists it.

    Attributes:
        name: of a packaged model, or the folder's.
        default: whether it is taken when no model is named.
        folder: that contains it.
        bytes: size of the weights file.
        parameters: numbers in it.
        dtype: of most of them, as stored, e.g. `F16`; the network computes in float32 or bfloat16 in either case.
        card: of the model.
    """

    name: str
    default: bool
    folder: str
    bytes: int
    parameters: int
    dtype: str
    card: ModelCard

    @property
    def backbone(self) -> str:
        """Architecture and patch, e.g. `vit_small/8`."""
        return f"{self.card.backbone.arch}/{self.card.backbone.patch_size}"

    @property
    def scored(self) -> tuple[str, ScoreTable] | None:
        """Split and scores: of the test splits where the card has them, else of validation; None without any."""
        if self.card.test.mean:
            return "test", self.card.test
        return ("validation", self.card.validation) if self.card.validation.mean else None

    def as_json(self) -> dict[str, Any]:
        """Values for programs."""
        card = self.card
        keys = ("name", "modality", "licence", "source")
        data = [{**{key: getattr(d, key) for key in keys}, "images": d.train_images} for d in card.training.datasets]
        return {
            "name": self.name,
            "default": self.default,
            "folder": self.folder,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "backbone": self.backbone,
            "objective": card.objective.kind,
            "crop_size": card.crop_size,
            "diameter": card.training.diameter,
            "licence": card.licence,
            "data": data,
            "scores": self._scores(),
        }

    def _scores(self) -> dict[str, Any]:
        if self.scored is None:
            return {}
        split, table = self.scored
        rows = {name: _shown(scores) for name, scores in table.by_dataset.items()}
        return {"split": split, "mean": _shown(table.mean), "by_dataset": rows}


def packaged_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(folder.name for folder in PACKAGED.glob("*") if is_model_folder(folder))


def default_model() -> str | None:
    """The packaged model that is taken when none is named: `cells`, or else the only one."""
    names = packaged_models()
    return DEFAULT if DEFAULT in names else names[0] if len(names) == 1 else None


def find_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a model given by folder, run folder or packaged name; None takes the default model.

    A folder of the same name as a packaged model goes first only if it contains a model.

    Raises:
        ConfigError: nothing by that name.
    """
    names = packaged_models()
    if model is None:
        chosen = default_model()
        if chosen is None:
            raise ConfigError(_none_chosen(names))
        return PACKAGED / chosen
    name = os.fspath(model)
    folder = local_path(name)
    for candidate in (folder, folder / "model"):  # the run folder that fine-tuning wrote contains model/
        if is_model_folder(candidate):
            return candidate
    if name in names:
        return PACKAGED / name
    if not folder.is_dir():
        raise ConfigError(_unknown(name, names))
    return folder


def export_folder(folder: Path) -> Path:
    """Default folder for files made of a model: its own, or the working directory for a packaged one."""
    return Path() if folder.parent == PACKAGED else folder


def _none_chosen(names: Sequence[str]) -> str:
    if not names:
        return "model: no packaged model is in this installation; name a model folder: --model DIR (Python: model=DIR)"
    return f"model: which one? --model NAME (Python: model=NAME) takes one of {', '.join(names)}"


def _unknown(name: str, names: Sequence[str]) -> str:
    text = f"model: {name!r} is neither a model folder nor a packaged model"
    if not names:
        return f"{text} (none is in this installation; nothing is downloaded)"
    lowered = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    meant = f"; did you mean {lowered[near[0]]}?" if near else ""
    return f"{text}{meant} (packaged: {', '.join(names)}; nothing is downloaded)"


def model_info(folder: str | os.PathLike[str], name: str = "") -> ModelInfo:
    """Describe a model folder without loading it.

    Raises:
        ConfigError: there is no config.json. CheckpointError: it or the weights cannot be read.
    """
    folder = Path(folder)
    card = ModelCard.read(folder)
    try:
        with safe_open(folder / WEIGHTS_NAME, framework="numpy") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
            counts: dict[str, int] = {}
            for one in slices:
                counts[one.get_dtype()] = counts.get(one.get_dtype(), 0) + math.prod(one.get_shape())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable model folder ({' '.join(str(error).split())})") from error
    name = name or folder.name
    return ModelInfo(
        name=name,
        default=name == default_model() and folder == PACKAGED / name,
        folder=str(folder),
        bytes=(folder / WEIGHTS_NAME).stat().st_size,
        parameters=sum(counts.values()),
        dtype=max(counts, key=lambda dtype: counts[dtype], default=""),
        card=card,
    )


def _shown(scores: Scores) -> dict[str, float | None]:
    return {key: scores[key] for key in SCORES if key in scores}


def describe_models() -> list[ModelInfo]:
    """Every packaged model, by name."""
    return [model_info(PACKAGED / name, name) for name in packaged_models()]


def models_text() -> str:
    """The packaged models for people: a block each."""
    blocks = [_block(info) for info in describe_models()]
    if not blocks:
        blocks = ["No packaged model is in this installation; segment with --model DIR, a model folder."]
    return "\n\n".join(
        [*blocks, "Nothing is downloaded: these are part of the installation. --model also takes a folder."]
    )


def models_json() -> str:
    """The packaged models for programs."""
    return json.dumps({"default": default_model(), "models": [info.as_json() for info in describe_models()]}, indent=2)


def _block(info: ModelInfo) -> str:
    card = info.card
    cells = f", cells of about {card.training.diameter:.0f} px" if card.training.diameter else ""
    rows = [
        ("size", [f"{info.bytes / 1e6:.1f} MB, {info.parameters / 1e6:.1f} M parameters ({info.dtype})"]),
        ("network", [f"{info.backbone}, {card.objective.kind}, window {card.crop_size} px{cells}"]),
        ("data", [f"{data.name}{_in_brackets(data.train_images, data.licence)}" for data in card.training.datasets]),
        ("licence", [card.licence or "not recorded; see those of the data"]),
        (info.scored[0] if info.scored else "scores", _score_lines(info)),
        ("folder", [info.folder]),
    ]
    lines = [f"{info.name}{' (default)' if info.default else ''}"]
    for title, values in rows:
        lines += [f"  {'' if number else title:<11}{value}" for number, value in enumerate(values or ["not recorded"])]
    return "\n".join(lines)


def _score_lines(info: ModelInfo) -> list[str]:
    if info.scored is None:
        return []
    _, table = info.scored
    rows = {**table.by_dataset, "mean": table.mean}
    return [f"{row}: {_figures(_shown(scores))}" for row, scores in rows.items()]


def _figures(values: Scores) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)


def _in_brackets(images: int | None, licence: str) -> str:
    parts = [f"{images} images" if images else "", licence]
    return f" ({', '.join(part for part in parts if part)})" if any(parts) else ""
