"""Start of a run: its images, checked; its length; whether the run in its folder can be continued."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinocell.core import log
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import LabelledItem, Split, open_dataset
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.checks import CellSizes, DataCheck, check_training_data
from dinocell.finetune.data.crops import CropDataset
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.data.sampler import SampleOrder
from dinocell.finetune.from_model import other_split
from dinocell.models import ModelCard
from dinocell.objectives import Objective
from dinocell.training import distributed


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Training crops, validation images, length of the training, and what the data check found."""

    train: CropDataset
    train_items: tuple[LabelledItem, ...]
    val: ImageStore
    total_steps: int
    notes: tuple[str, ...]
    sizes: CellSizes


def open_run_data(config: FinetuneConfig, objective: Objective, start: ModelCard | None = None) -> RunData:
    """Open the datasets, check a sample of them, and report the findings.

    Args:
        start: card of the starting model.

    Raises:
        ConfigError: data.root is not given or is not a dataset.
        DataError: nothing can be trained on.
    """
    items = open_items(config, "train")
    if not items:
        raise DataError(f"{', '.join(config.data.root)}: the train split contains no image")
    store = ImageStore(items, config, log.warning)
    notes: tuple[str, ...] = ()
    sizes = CellSizes()
    if config.data.check_images:
        notes, check = _check(store, config, objective)
        sizes = check.sizes
    names = sorted({item.dataset.name for item in items})
    warning = other_split(config, names, start) if start is not None else ""
    if warning:
        log.warning(warning)
    if config.data.shares:
        names = list(dict.fromkeys(item.dataset.name for item in items))  # in the order of data.root
        if len(names) != len(config.data.shares):
            raise ConfigError(
                f"data.shares: {len(config.data.shares)} shares, but the training images are of {len(names)} datasets "
                f"({', '.join(names)}); give each dataset its own root, and leave out those without images"
            )
    owners = [names.index(item.dataset.name) for item in items]
    order = SampleOrder(owners, config.data.sampling, config.seed, config.data.shares)
    val_items = open_items(config, "val")
    if not val_items:
        log.warning("no val split: keeping the last model, unvalidated")
    total = config.train.steps or max(1, math.ceil(config.train.epochs * len(items) / config.train.batch_size))
    budget = f", at most {config.train.minutes:g} minutes" if config.train.minutes else ""
    log.info(f"{len(items)} training and {len(val_items)} validation images; {total} steps{budget}")
    return RunData(
        train=CropDataset(store, order, objective, config),
        train_items=tuple(items),
        val=ImageStore(val_items, config, log.warning),
        total_steps=total,
        notes=notes,
        sizes=sizes,
    )


def open_items(config: FinetuneConfig, split: Split) -> list[LabelledItem]:
    """Items of one split of every data.root; rank 0 opens first, since opening may write splits.json."""
    if not config.data.root:
        raise ConfigError("data.root: no dataset given; add data.root=FOLDER (with images/ and masks/ inside)")
    if not distributed.is_main():
        distributed.barrier()
    items = [item for root in config.data.root for item in open_dataset(root, split, seed=config.seed)]
    if distributed.is_main():
        distributed.barrier()
    return items


def _check(store: ImageStore, config: FinetuneConfig, objective: Objective) -> tuple[tuple[str, ...], DataCheck]:
    check = check_training_data(
        store,
        config.data.check_images,
        crop_size=config.crop_size,
        pixels_per_patch=config.backbone.patch_size * config.crop_size / config.network_size,
        instances=objective.has_instances,
    )
    for line in check.summary:
        log.info(line)
    for line in check.warnings:
        log.warning(line)
    skipped = [f"Skipped {store.items[i].stem}: {reason}" for i, reason in store.bad.items()]
    return (*check.summary, *(f"Warning: {line}" for line in check.warnings), *skipped), check
