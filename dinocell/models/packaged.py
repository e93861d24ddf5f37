"""The models that come with the installation: their names, where they lie, and what is known of each.

A packaged model is a folder `dinocell/models/packaged/NAME` of `model.safetensors`, `config.json` and `README.md` (the
model card). Nothing is ever downloaded: a name that is not here is an error.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import local_path
from dinocell.models.folder import CONFIG_NAME, WEIGHTS_NAME

PACKAGED = Path(__file__).parent / "packaged"
DEFAULT = "cells"
SCORES = ("MMA", "SEG", "DET", "AP50", "AP75", "PQ")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What `dinocell models` says of a model; all but size and parameters is what its config.json holds.

    Attributes:
        name: of a packaged model, or the folder's.
        default: whether it is taken when no model is named.
        folder: where it lies.
        bytes: size of the weights file.
        parameters: numbers in it.
        dtype: how most of them are stored, e.g. `F16`; the network computes in float32 or bfloat16 in either case.
        backbone: architecture and patch, e.g. `vit_small/8`.
        objective: flows, distance or semantic.
        crop_size: side of its window, px.
        diameter: median cell diameter at the training scale, px; None if it is not recorded.
        licence: of the weights; "" if it is not recorded.
        data: one a training data set: name, modality, images, licence, source.
        scores: `split`, `mean` and `by_dataset`; of the test split where the model records it, else of validation.
    """

    name: str
    default: bool
    folder: str
    bytes: int
    parameters: int
    dtype: str
    backbone: str
    objective: str
    crop_size: int
    diameter: float | None
    licence: str
    data: tuple[dict[str, Any], ...]
    scores: dict[str, Any]


def packaged_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(entry.parent.name for entry in PACKAGED.glob(f"*/{CONFIG_NAME}"))


def default_model() -> str | None:
    """The packaged model that is taken when none is named: `cells`, or else the only one."""
    names = packaged_models()
    return DEFAULT if DEFAULT in names else names[0] if len(names) == 1 else None


def find_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a model given by folder, run folder or packaged name; None takes the default model.

    A folder of the same name as a packaged model goes first only if it holds a model.

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
    for candidate in (folder, folder / "model"):  # the run folder that fine-tuning wrote holds model/
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if name in names:
        return PACKAGED / name
    if not folder.is_dir():
        raise ConfigError(_unknown(name, names))
    return folder


def export_folder(folder: Path) -> Path:
    """Where files made of a model go by default: its own folder, or the working directory for a packaged one."""
    return Path() if folder.parent == PACKAGED else folder


def _none_chosen(names: Sequence[str]) -> str:
    if not names:
        return "model: no packaged model is in this installation; name a model folder: --model DIR (Python: model=DIR)"
    return f"model: which one? --model NAME (Python: model=NAME) takes one of {', '.join(names)}"


def _unknown(name: str, names: Sequence[str]) -> str:
    text = f"model: {name!r} is no model folder and no packaged model"
    if not names:
        return f"{text} (none is in this installation; nothing is downloaded)"
    lowered = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    meant = f"; did you mean {lowered[near[0]]}?" if near else ""
    return f"{text}{meant} (packaged: {', '.join(names)}; nothing is downloaded)"


def model_info(folder: str | os.PathLike[str], name: str = "") -> ModelInfo:
    """Describe a model folder without loading it.

    Raises:
        CheckpointError: config.json or the weights cannot be read.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        training = meta.get("training") or {}
        backbone = f"{meta['backbone']['arch']}/{meta['backbone']['patch_size']}"
        with safe_open(folder / WEIGHTS_NAME, framework="numpy") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
            counts: dict[str, int] = {}
            for one in slices:
                counts[one.get_dtype()] = counts.get(one.get_dtype(), 0) + math.prod(one.get_shape())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable model folder ({' '.join(str(error).split())})") from error
    name = name or folder.name
    return ModelInfo(
        name=name,
        default=name == default_model() and folder == PACKAGED / name,
        folder=str(folder),
        bytes=(folder / WEIGHTS_NAME).stat().st_size,
        parameters=sum(counts.values()),
        dtype=max(counts, key=lambda dtype: counts[dtype], default=""),
        backbone=backbone,
        objective=str((meta.get("objective") or {}).get("kind", "flows")),
        crop_size=int(meta["crop_size"]),
        diameter=training.get("diameter"),
        licence=str(meta.get("licence", "")),
        data=tuple(_dataset(entry) for entry in training.get("datasets") or ()),
        scores=_scores(meta),
    )


def _dataset(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: str(entry.get(key, "")) for key in ("name", "modality", "licence", "source")}
    return {**kept, "images": entry.get("train_images")}


def _scores(meta: Mapping[str, Any]) -> dict[str, Any]:
    for split in ("test", "validation"):
        found = meta.get(split) or {}
        if found.get("mean"):
            return {
                "split": split,
                "mean": {key: found["mean"][key] for key in SCORES if key in found["mean"]},
                "by_dataset": {
                    row: {key: values[key] for key in SCORES if key in values}
                    for row, values in (found.get("by_dataset") or {}).items()
                },
            }
    return {}


def describe_models() -> list[ModelInfo]:
    """Every packaged model, by name."""
    return [model_info(PACKAGED / name, name) for name in packaged_models()]


def models_text() -> str:
    """The packaged models for people: a block each."""
    blocks = [_block(info) for info in describe_models()]
    if not blocks:
        blocks = ["No packaged model is in this installation; segment with --model DIR, a model folder."]
    return "\n\n".join([*blocks, "Nothing is downloaded: these lie in the installation. --model also takes a folder."])


def models_json() -> str:
    """The packaged models for programs."""
    return json.dumps({"default": default_model(), "models": [asdict(info) for info in describe_models()]}, indent=2)


def _block(info: ModelInfo) -> str:
    cells = f", cells of about {info.diameter:.0f} px" if info.diameter else ""
    rows = [
        ("size", [f"{info.bytes / 1e6:.1f} MB, {info.parameters / 1e6:.1f} M parameters ({info.dtype})"]),
        ("network", [f"{info.backbone}, {info.objective}, window {info.crop_size} px{cells}"]),
        ("data", [f"{one['name']}{_in_brackets(one['images'], one['licence'])}" for one in info.data]),
        ("licence", [info.licence or "not recorded; see those of the data"]),
        (info.scores.get("split", "scores"), _score_lines(info)),
        ("folder", [info.folder]),
    ]
    lines = [f"{info.name}{' (default)' if info.default else ''}"]
    for title, values in rows:
        lines += [f"  {'' if number else title:<11}{value}" for number, value in enumerate(values or ["not recorded"])]
    return "\n".join(lines)


def _score_lines(info: ModelInfo) -> list[str]:
    if not info.scores:
        return []
    rows = {**info.scores["by_dataset"], "mean": info.scores["mean"]}
    return [f"{row}: {_figures(values)}" for row, values in rows.items()]


def _figures(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)


def _in_brackets(images: int | None, licence: str) -> str:
    parts = [f"{images} images" if images else "", licence]
    return f" ({', '.join(part for part in parts if part)})" if any(parts) else ""
