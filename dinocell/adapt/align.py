"""The adapted backbone under the model's decoder: as it is where they still agree, else with the decoder re-aligned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dinocell.adapt.config import AdaptConfig
from dinocell.adapt.image_scale import AsItIs
from dinocell.core import log
from dinocell.core.files import atomic_write_text
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import pool, score_image
from dinocell.models import load_backbone, load_model_folder, save_model
from dinocell.models.packaged import find_model
from dinocell.segmentation import load_model


def adapted_model(config: AdaptConfig, train: Callable[[], object]) -> Path:
    """OUT/adapted: the model after stage 1; finished before, it is kept.

    With labels the decoder is trained on them. Without, the model with nothing but its backbone exchanged is kept if
    its labels of the val crops still agree with the original's; else the decoder is trained on the original's labels,
    and of the two the one that agrees more is kept.

    Args:
        train: runs `config.finetune`, whose model is then in OUT/aligned/model.
    """
    out = Path(config.out)
    target, swapped, aligned = out / "adapted", out / "swapped", out / "aligned" / "model"
    if (target / "adapted.json").is_file():
        return target
    note: dict[str, object] = {}
    if config.labels:
        train()
        source = aligned
    else:
        swap_backbone(config, swapped)
        note["agreement_as_it_is"] = before = agreement(swapped, config)
        log.info(f"with the adapted backbone the model's labels agree with its own to MMA {before:.3f}")
        source = swapped
        if before < config.agrees:
            log.info(f"below {config.agrees:g}: the decoder is re-aligned")
            train()
            note["agreement_re_aligned"] = after = agreement(aligned, config)
            source = aligned if after > before else swapped
            kept = "kept" if source == aligned else "not kept, it agrees less"
            log.info(f"after re-alignment: MMA {after:.3f}; {kept}")
    note["decoder"] = "the original's" if source == swapped else "trained"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    atomic_write_text(target / "adapted.json", json.dumps(note, indent=1) + "\n")
    return target


def swap_backbone(config: AdaptConfig, folder: Path) -> None:
    """The original model with the best teacher as its backbone."""
    model, card = load_model_folder(find_model(config.start))
    teacher = load_backbone(Path(config.pretrain.output_dir) / "backbone.safetensors", in_channels=None)
    model.backbone.load_state_dict(teacher.state_dict())
    save_model(folder, model, card)


def agreement(model: Path, config: AdaptConfig) -> float:
    """MMA, pooled, of the model's labels of the val crops with the original's; unsure pixels are left out."""
    segmenter = AsItIs(load_model(model, device=config.finetune.device))
    folder = Path(config.out) / "pseudo" / "val"
    rows = []
    for path in sorted((folder / "images").iterdir()):
        own, ignore = read_labels(folder / "masks" / path.name), read_image(folder / "ignore" / path.name).array
        rows.append(score_image(own, segmenter.segment(path).labels, ignore))
    return pool(rows).mma
