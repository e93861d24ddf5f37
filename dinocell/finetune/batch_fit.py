"""Device memory: how many crops at a time fit, tried with a whole training step, and what to say when they do not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from dinocell.core import log
from dinocell.core.device import autocast, choose_dtype
from dinocell.core.errors import DataError
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.from_model import adopt
from dinocell.finetune.network import build_model, freeze_forever
from dinocell.models import ModelCard, SegmentationModel
from dinocell.models.packaged import find_model
from dinocell.objectives import Objective, build_objective
from dinocell.training import distributed


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation on a GPU or in main memory failed."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


class Probe:
    """Tries training steps of a model with made-up crops.

    Memory for what a first step would add (Adam's two moments, DDP's copy of the gradients) stays in memory meanwhile.
    """

    def __init__(
        self, model: SegmentationModel, objective: Objective, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._model, self._objective, self._device, self._dtype = model, objective, device, dtype

    def fits(self, crops: int, side: int) -> bool:
        """Try a step with this many crops of this side (px); True if it fits."""
        try:
            self._step(crops, side)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fitted = False
        else:
            fitted = True
        self._model.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return fitted

    def _step(self, crops: int, side: int) -> None:
        copies = 3 if distributed.world().world_size > 1 else 2
        trained = [p for p in self._model.parameters() if p.requires_grad]
        held = [torch.empty_like(p) for p in trained for _ in range(copies)]
        image = torch.zeros(crops, 1, side, side, device=self._device)
        with autocast(self._device, self._dtype):
            prediction = self._model(image)
        loss = self._objective.loss(prediction, torch.zeros_like(prediction), torch.ones_like(image))
        loss.backward()
        del held


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest candidate that fits, by bisection (what is larger needs more); None when none does."""
    ordered = sorted(candidates)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if fits(ordered[middle]):
            low = middle + 1
        else:
            high = middle
    return ordered[low - 1] if low else None


def micro_batches(config: FinetuneConfig, world_size: int) -> list[int]:
    """Crops at a time that the batch of one process can be split into evenly."""
    own = config.train.batch_size // world_size
    return [n for n in range(1, own + 1) if own % n == 0]


def smaller_crops(config: FinetuneConfig) -> list[int]:
    """Sides below crop_size (px) that the backbone's patches fill when resized by the recipe's factor."""
    patch = config.backbone.patch_size
    inputs = range(patch, config.network_size, patch)
    sides = {side: side * config.crop_size // config.network_size for side in inputs}
    return [
        crop for side, crop in sides.items() if crop >= 16 and crop * config.network_size == side * config.crop_size
    ]


def choose_accumulation(
    model: SegmentationModel, objective: Objective, config: FinetuneConfig, dtype: torch.dtype
) -> int:
    """The fewest micro-batches whose crops fit, the same on every process (train.auto_batch).

    Raises:
        DataError: not even one crop fits.
    """
    world = distributed.world()
    probe = Probe(model, objective, world.device, dtype)
    found = largest_that_fits(micro_batches(config, world.world_size), lambda n: probe.fits(n, config.crop_size))
    if distributed.any_rank(found is None):
        raise DataError(_one_crop_is_too_much(config, probe))
    assert found is not None
    own = config.train.batch_size // world.world_size
    accumulate = distributed.max_rank(own // found)
    log.info(
        f"auto_batch: {own // accumulate} crops at a time fit on {world.device}; train.accumulate={accumulate} "
        f"(the batch stays {config.train.batch_size})"
    )
    return accumulate


def out_of_memory_message(config: FinetuneConfig) -> str:
    """Explain the failure and name the largest batch or crop that fits, measured with a fresh model.

    Call it outside the `except` block: while the error lives, so does the memory of the failed run.
    """
    gc.collect()
    world = distributed.world()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    if config.start:
        config = adopt(config, ModelCard.read(find_model(config.start)))
    objective = build_objective(config.objective)
    crops = config.train.batch_size // world.world_size // config.train.accumulate
    what = f"out of memory on {world.device} with {crops} crops of {config.crop_size} px at a time"
    model = build_model(config, len(objective.channels)).to(world.device)
    freeze_forever(model.backbone, config.backbone)
    probe = Probe(model, objective, world.device, choose_dtype(config.precision, world.device)[0])
    smaller = [n for n in micro_batches(config, world.world_size) if n < crops]
    found = largest_that_fits(smaller, lambda n: probe.fits(n, config.crop_size))
    if found is None:
        return f"{what}; {_one_crop_is_too_much(config, probe)}"
    accumulate = config.train.batch_size // world.world_size // found
    return (
        f"{what}; {found} would fit: set train.accumulate={accumulate} (same result), or train.auto_batch=true "
        "(--auto-batch) to have it chosen"
    )


def _one_crop_is_too_much(config: FinetuneConfig, probe: Probe) -> str:
    crop = largest_that_fits(smaller_crops(config), lambda side: probe.fits(1, side))
    what = f"not even one crop of {config.crop_size} px fits"
    if crop is None:
        return f"{what}, nor a smaller one; choose a smaller backbone (backbone.arch), or a device with more memory"
    size = f"crop_size={crop} input_size={crop * config.network_size // config.crop_size}"
    overlap = f" overlap={crop // 4}" if config.overlap >= crop else ""
    return f"{what}; the largest that does: {size}{overlap}, or choose a smaller backbone"
