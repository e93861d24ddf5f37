"""Cached patch tokens: a frozen backbone sees each crop once, and only the decoder works in every step.

Crops that are windows of the grid and keep their gray values recur exactly. Their tokens are computed before the first
step and stored on disk, one file per image, in a folder named after backbone and settings; an interrupted build resumes
with the images that are missing. Crops are recognized by their pixels: neither the dataset nor the loader knows of the
cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dinocell.core import log
from dinocell.core.device import autocast
from dinocell.core.files import AtomicFile
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.augment import possible_turns
from dinocell.finetune.data.crops import grid_windows
from dinocell.finetune.data.image_store import ImageStore, PreparedImage, shape2
from dinocell.models import SegmentationModel
from dinocell.training import distributed

GIB = 2**30
SHARE_OF_FREE_DISK = 0.9


class TokenCache(nn.Module):
    """A network with a frozen backbone, trained in its place: of stored crops only the decoder runs.

    Args:
        model: the network; its backbone must stay as it is.
        store: images whose crops are stored, as far as `backbone.cache_gb` and the disk allow.
        config: the recipe.
        device, dtype: for the backbone.
    """

    def __init__(
        self,
        model: SegmentationModel,
        store: ImageStore,
        config: FinetuneConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model = model
        self._rows: dict[int, tuple[Path, int]] = {}
        for path in TokenFiles(model, store, config, device, dtype).build():
            keys = np.load(path, mmap_mode="r")["key"]
            self._rows.update((int(key), (path, row)) for row, key in enumerate(keys))

    def forward(self, z: Tensor) -> Tensor:
        """Raw maps [B, K, H, W] of preprocessed crops [B, 1, H, W], as the network gives them."""
        maps: Tensor = self.model(z, self.tokens(z))
        return maps

    @torch.no_grad()
    def tokens(self, z: Tensor) -> Tensor:
        """Patch tokens [B, N, D] float32 of crops [B, 1, H, W]: stored ones, and the backbone's of all others."""
        rows = [self._rows.get(crop_key(crop)) for crop in z[:, 0].cpu().numpy()]
        others = [number for number, row in enumerate(rows) if row is None]
        encoded = iter(self.model.encode(z[others]).float() if others else ())
        return torch.stack([next(encoded) if row is None else _read(*row).to(z.device).float() for row in rows])


def crop_key(crop: NDArray[np.float32]) -> int:
    """64 bits that name a crop (H, W) by its pixels."""
    same_zeros = np.add(crop, np.float32(0), order="C")  # brightness by a factor of 1 turns -0 into 0
    return int.from_bytes(hashlib.blake2b(same_zeros.tobytes(), digest_size=8).digest(), "little")


def _read(path: Path, row: int) -> Tensor:
    return torch.from_numpy(np.array(np.load(path, mmap_mode="r")[row]["tokens"]))  # [N, D]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of the cache: its number in the store and the number of its crops (windows × turns)."""

    image: int
    crops: int


class TokenFiles:
    """The files of a cache: an array with one record (key, float16 tokens) per window and turn of an image.

    Args: as of `TokenCache`.
    """

    def __init__(
        self,
        model: SegmentationModel,
        store: ImageStore,
        config: FinetuneConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._model, self._store, self._config, self._device, self._dtype = model, store, config, device, dtype
        self._turns = possible_turns(config.augment)
        root = Path(config.backbone.cache_dir or Path(config.output_dir) / "tokens")
        self._directory = root / fingerprint(model, config, dtype)
        patches = (config.network_size // model.backbone.patch_size) ** 2
        self._record = np.dtype([("key", np.uint64), ("tokens", np.float16, (patches, model.backbone.embed_dim))])

    def build(self) -> list[Path]:
        """Announce the work, then compute what is not on disk yet; every process computes its share of the images."""
        self._directory.mkdir(parents=True, exist_ok=True)
        entries = self._entries()
        present = {path for path in entries if path.is_file()}
        kept = self._within_budget(entries, present)
        todo = [path for path in kept if path not in present]
        if todo:
            self._announce(entries, kept, todo)
        distributed.barrier()
        world = distributed.world()
        own = todo[world.rank :: world.world_size]
        training = self._model.training
        self._model.eval()
        for path in log.progress(own, "caching patch tokens", total=len(own)) if own else ():
            records = self.records(self._prepared(entries[path]))
            with AtomicFile(path) as temporary, temporary.open("wb") as file:
                np.save(file, records)
        self._model.train(training)
        distributed.barrier()
        return kept

    def records(self, prepared: PreparedImage) -> NDArray[np.void]:
        """Keys and tokens of every window and turn of one image, (windows × turns,)."""
        size, corners = self._config.crop_size, grid_windows(shape2(prepared.image), self._config)
        records = np.empty((len(corners), len(self._turns)), self._record)
        for row, (y, x) in zip(records, corners, strict=True):
            window = prepared.image[y : y + size, x : x + size]
            crops = np.stack([turn.apply(window) for turn in self._turns])  # [turns, H, W]
            row["key"] = [crop_key(crop) for crop in crops]
            row["tokens"] = self._encode(crops)
        return records.ravel()

    def _encode(self, crops: NDArray[np.generic]) -> NDArray[np.float16]:
        """Tokens (n, N, D) of crops (n, H, W)."""
        parts = torch.from_numpy(crops)[:, None].split(
            max(1, self._config.train.batch_size // self._config.train.accumulate)
        )
        with torch.inference_mode(), autocast(self._device, self._dtype):
            return np.concatenate([self._model.encode(part.to(self._device)).half().cpu().numpy() for part in parts])

    def _entries(self) -> dict[Path, Entry]:
        """All usable images, by the file of each, which is named after the prepared pixels."""
        entries = {}
        for number in range(len(self._store)):
            prepared = self._store.get(number)
            if prepared is not None:
                image = prepared.image
                name = hashlib.blake2b(image.tobytes(), digest_size=12, key=str(image.shape).encode()).hexdigest()
                crops = len(grid_windows(shape2(image), self._config)) * len(self._turns)
                entries[self._directory / f"{name}.npy"] = Entry(image=number, crops=crops)
        return entries

    def _prepared(self, entry: Entry) -> PreparedImage:
        prepared = self._store.get(entry.image)
        assert prepared is not None  # only usable images have an entry
        return prepared

    def _within_budget(self, entries: Mapping[Path, Entry], present: Collection[Path]) -> list[Path]:
        """Files to keep: those on disk first, then in order, as long as they fit."""
        free = shutil.disk_usage(self._directory).free * SHARE_OF_FREE_DISK
        on_disk = self._bytes(entries[path].crops for path in present)
        budget = min(self._config.backbone.cache_gb * GIB, free + on_disk)
        kept: set[Path] = set()
        for path in sorted(entries, key=lambda path: path not in present):
            size = self._bytes([entries[path].crops])
            if size <= budget:
                kept.add(path)
                budget -= size
        return [path for path in entries if path in kept]

    def _bytes(self, crops: Iterable[int]) -> int:
        return sum(crops) * self._record.itemsize

    def _announce(self, entries: Mapping[Path, Entry], kept: Collection[Path], todo: Sequence[Path]) -> None:
        """Log time and disk, estimated from one crop, and the share of crops that stays out of the cache."""
        crops = sum(entries[path].crops for path in todo)
        seconds = crops * self._seconds_per_crop(self._prepared(entries[todo[0]])) / distributed.world().world_size
        free = shutil.disk_usage(self._directory).free
        log.info(
            f"caching patch tokens of {crops} crops ({len(todo)} images, every window and turn): "
            f"{self._bytes([crops]) / GIB:.2g} GiB in {self._directory.parent} ({free / GIB:.0f} GiB free), about "
            f"{log.format_duration(seconds)}; stop and run again at any time, finished images stay"
        )
        total = sum(entry.crops for entry in entries.values())
        left_out = total - sum(entries[path].crops for path in kept)
        if left_out:
            log.warning(
                f"{left_out / total:.0%} of the crops do not fit into backbone.cache_gb="
                f"{self._config.backbone.cache_gb:g} or the disk and go through the backbone in every step; all would "
                f"take {self._bytes([total]) / GIB:.3g} GiB"
            )

    def _seconds_per_crop(self, prepared: PreparedImage) -> float:
        crop = prepared.image[None, : self._config.crop_size, : self._config.crop_size]
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            self._encode(crop)
            times.append(time.perf_counter() - begin)
        return min(times)


def fingerprint(model: SegmentationModel, config: FinetuneConfig, dtype: torch.dtype) -> str:
    """16 hex digits that change with the backbone's weights and with what it makes of an image."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    turns = tuple(turn.number for turn in possible_turns(config.augment))
    settings = [config.crop_size, config.network_size, config.overlap, turns, str(dtype)]
    digest.update(json.dumps([*settings, model.backbone.patch_size]).encode())
    return digest.hexdigest()[:16]
