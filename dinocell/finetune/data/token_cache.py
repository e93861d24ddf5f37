"""Patch tokens of a frozen backbone, computed once for every window of the grid and every turn, and kept on disk.

One file an image, float16 (windows, turns, N, D), in a folder named after backbone and settings: other weights or
settings never meet these tokens, and an interrupted build goes on with the images that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinocell.core import log
from dinocell.core.device import autocast
from dinocell.core.files import atomic_write_bytes
from dinocell.datasets.labelled import LabelledItem
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.augment import Turn, possible_turns
from dinocell.finetune.data.crops import grid_windows
from dinocell.finetune.data.image_store import ImageStore, PreparedImage
from dinocell.finetune.data.loader import Batch
from dinocell.models import SegmentationModel
from dinocell.training import distributed

GIB = 2**30
SHARE_OF_FREE_DISK = 0.9


class TokenCache:
    """Reads the tokens of one backbone and recipe.

    Args:
        directory: folder of this backbone and these settings.
        files: image number → file name, for the images that are kept.
        turns: symmetries kept, in the order of the files.
    """

    def __init__(self, directory: Path, files: dict[int, str], turns: Sequence[int]) -> None:
        self.directory, self.files = directory, files
        self._column = {turn: column for column, turn in enumerate(turns)}

    def get(self, image: int, window: int, turn: int) -> NDArray[np.float16] | None:
        """Tokens (N, D) of one window of an image, turned; None for an image that is not kept."""
        if image not in self.files:
            return None
        kept = np.load(self.directory / self.files[image], mmap_mode="r")
        return np.array(kept[window, self._column[turn]])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be computed: image number → file name, crops and bytes of each image."""

    files: dict[int, str]
    crops: dict[int, int]
    bytes_per_crop: int

    def size(self, images: Sequence[int]) -> int:
        """Bytes on disk."""
        return sum(self.crops[i] for i in images) * self.bytes_per_crop


def known_tokens(model: SegmentationModel, batch: Batch) -> Tensor | None:
    """The batch's cached tokens [B, N, D], completed by the backbone where some are missing; None without any."""
    if batch.tokens is None:
        return None
    tokens = batch.tokens.float()
    if batch.missing:
        with torch.no_grad():
            tokens[list(batch.missing)] = model.encode(batch.image[list(batch.missing)]).float()
    return tokens


def build_token_cache(
    model: SegmentationModel, store: ImageStore, config: FinetuneConfig, device: torch.device, dtype: torch.dtype
) -> TokenCache:
    """Say what it takes, then compute what is not on disk yet; every process computes its share of the images."""
    model.eval()
    turns = possible_turns(config.augment)
    root = Path(config.backbone.cache_dir or Path(config.output_dir) / "tokens")
    directory = root / fingerprint(model, config, turns, dtype)
    plan = make_plan(model, store, config, turns)
    directory.mkdir(parents=True, exist_ok=True)
    present = [i for i, name in plan.files.items() if (directory / name).is_file()]
    kept = within_budget(plan, present, _budget(config, directory, plan.size(present)))
    todo = [i for i in kept if i not in present]
    if todo:
        _announce(model, store, plan, kept, todo, directory, config, device, dtype)
    distributed.barrier()
    world = distributed.world()
    own = todo[world.rank :: world.world_size]
    for image in log.progress(own, "caching patch tokens", total=len(own)) if own else ():
        prepared = store.get(image)
        assert prepared is not None
        tokens = image_tokens(model, prepared, config, turns, device, dtype)
        buffer = io.BytesIO()
        np.save(buffer, tokens)
        atomic_write_bytes(directory / plan.files[image], buffer.getvalue())
    distributed.barrier()
    model.train()
    return TokenCache(directory, {i: plan.files[i] for i in kept}, turns)


def fingerprint(model: SegmentationModel, config: FinetuneConfig, turns: Sequence[int], dtype: torch.dtype) -> str:
    """Changes with the backbone's weights and with everything that shapes its input."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    settings = [config.crop_size, config.network_size, config.overlap, list(turns), str(dtype)]
    digest.update(json.dumps([settings, asdict(config.preprocess), model.backbone.patch_size]).encode())
    return digest.hexdigest()[:16]


def make_plan(model: SegmentationModel, store: ImageStore, config: FinetuneConfig, turns: Sequence[int]) -> Plan:
    """Files and sizes of all usable images."""
    files, crops = {}, {}
    for index, item in enumerate(store.items):
        prepared = store.get(index)
        if prepared is not None:
            files[index] = _file_name(item)
            crops[index] = len(_corners(prepared, config)) * len(turns)
    patches = (config.network_size // model.backbone.patch_size) ** 2
    return Plan(files=files, crops=crops, bytes_per_crop=2 * patches * model.backbone.embed_dim)


def _file_name(item: LabelledItem) -> str:
    facts = item.image.stat()
    text = f"{item.image.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"


def _corners(prepared: PreparedImage, config: FinetuneConfig) -> list[tuple[int, int]]:
    return grid_windows((prepared.image.shape[0], prepared.image.shape[1]), config)


def _budget(config: FinetuneConfig, directory: Path, present: int) -> float:
    free = shutil.disk_usage(directory).free * SHARE_OF_FREE_DISK + present
    return min(config.backbone.cache_gb * GIB, free)


def within_budget(plan: Plan, present: Sequence[int], budget: float) -> list[int]:
    """Images to keep: those on disk first, then in order, as long as they fit into `budget` bytes."""
    kept: list[int] = []
    total = 0
    for image in (*present, *(i for i in plan.files if i not in set(present))):
        size = plan.size([image])
        if total + size <= budget:
            kept.append(image)
            total += size
    return sorted(kept)


def _announce(
    model: SegmentationModel,
    store: ImageStore,
    plan: Plan,
    kept: Sequence[int],
    todo: Sequence[int],
    directory: Path,
    config: FinetuneConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Say how long it will take and how much disk, from the time of one crop."""
    prepared = store.get(todo[0])
    assert prepared is not None
    crops = sum(plan.crops[i] for i in todo) / distributed.world().world_size
    seconds = crops * _seconds_per_crop(model, prepared, config, device, dtype)
    free = shutil.disk_usage(directory).free
    log.info(
        f"caching patch tokens of {sum(plan.crops[i] for i in todo)} crops ({len(todo)} images, every window and turn):"
        f" {plan.size(todo) / GIB:.2g} GiB in {directory.parent} ({free / GIB:.0f} GiB free), about "
        f"{log.format_duration(seconds)}; stop and run again at any time, finished images stay"
    )
    left_out = sum(plan.crops[i] for i in plan.files if i not in set(kept))
    if left_out:
        share = left_out / sum(plan.crops.values())
        log.warning(
            f"{share:.0%} of the crops do not fit into backbone.cache_gb={config.backbone.cache_gb:g} or the disk "
            f"and go through the backbone in every step; all would take {plan.size(list(plan.files)) / GIB:.3g} GiB"
        )


def _seconds_per_crop(
    model: SegmentationModel,
    prepared: PreparedImage,
    config: FinetuneConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    size = config.crop_size
    crop = torch.from_numpy(prepared.image[:size, :size].copy())[None, None].to(device)  # [1, 1, size, size]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        with torch.inference_mode(), autocast(device, dtype):
            model.encode(crop).cpu()
        times.append(time.perf_counter() - begin)
    return min(times)


def image_tokens(
    model: SegmentationModel,
    prepared: PreparedImage,
    config: FinetuneConfig,
    turns: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float16]:
    """Tokens (windows, turns, N, D) of one image."""
    size = config.crop_size
    rows = []
    for y, x in _corners(prepared, config):
        window = prepared.image[y : y + size, x : x + size]
        crops = torch.from_numpy(np.stack([Turn.of_number(turn).apply(window) for turn in turns])[:, None]).to(device)
        parts = crops.split(max(1, config.train.batch_size // config.train.accumulate))
        with torch.inference_mode(), autocast(device, dtype):
            rows.append(np.concatenate([model.encode(part).half().cpu().numpy() for part in parts]))
    return np.stack(rows)
