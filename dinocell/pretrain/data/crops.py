"""Unlabelled images in, batches of crops and masks out.

Everything random is a function of the seed and a global sample number: sample n shows image `order(n)` under crops
drawn from (seed, n). Ranks and micro-batches take consecutive runs of sample numbers, so that the stream of samples is
the same for any number of workers, and continues where it was for any number of ranks.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinocell.core.errors import ConfigError, first_line
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.contrast import to_uint8
from dinocell.images.listing import list_images
from dinocell.images.read import read_image
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.data.augment import Crops, UInt8Array, multi_crop, sample_rng
from dinocell.pretrain.data.masking import batch_masks

_ORDER_STREAM, _MASK_STREAM, _REPLACEMENT_STREAM = 1, 2, 3  # 0 is augment.py's
_REPLACEMENT_TRIES = 50
_GRACE = 60  # s


class Sample(NamedTuple):
    """One image's crops, and what went wrong on the way."""

    number: int
    path: str
    crops: Crops
    unreadable: dict[str, str]  # path -> reason, of images this sample should have shown
    failed: bool  # no image could be read in its place: the crops are blank


class Batch(NamedTuple):
    """One micro-batch of B images. Crops are grouped by crop, not by image, as in DINOv2: row c B + b."""

    global_crops: Tensor  # uint8 [2 B, 1, G, G]
    local_crops: Tensor  # uint8 [L B, 1, l, l]
    masks: Tensor  # bool [2 B, N], True = masked
    mask_indices: Tensor  # int64 [M], positions of the masked patches in masks.flatten()
    patch_weights: Tensor  # float32 [M], 1 / masked patches of the patch's image
    paths: list[str]
    unreadable: dict[str, str]
    failed: bool

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in self._asdict().items() if _is_tensor(value)
        }
        return self._replace(**moved)


def find_images(roots: Sequence[str]) -> list[str]:
    """Every image under the roots; of a folder written by `dinocell curate`, its crops.

    Raises:
        ConfigError: a root is missing or has no image.
    """
    sources = [str(Path(root) / "crops") if (Path(root) / "manifest.csv").is_file() else root for root in roots]
    paths = [str(path) for path in list_images(sources)]
    if not paths:
        raise ConfigError(f"data.root: no image under {', '.join(map(repr, roots))}; give a folder of images")
    return paths


def read_gray(path: str, low: float, high: float) -> UInt8Array:
    """Read an image as uint8 (H, W); other than 8-bit is stretched between two percentiles.

    Raises:
        DataError: the file cannot be read as an image.
    """
    gray = to_gray(read_image(path))
    return gray if gray.dtype == np.uint8 else to_uint8(gray, low, high)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class CropDataset(Dataset[Sample]):
    """Sample number -> crops; a file that cannot be read is replaced by another one and named."""

    def __init__(self, paths: Sequence[str], config: PretrainConfig) -> None:
        self.paths = list(paths)
        self.config = config
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def image_index(self, number: int) -> int:
        """Index of the image of sample `number`: every image once per pass, each pass in its own random order."""
        epoch, position = divmod(number, len(self.paths))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.config.seed, _ORDER_STREAM, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self.paths))
        return int(self._order[position])

    def __getitem__(self, number: int) -> Sample:
        config = self.config
        replacements = np.random.default_rng((config.seed, _REPLACEMENT_STREAM, number))
        others = (self.paths[index] for index in replacements.integers(len(self.paths), size=_REPLACEMENT_TRIES))
        unreadable: dict[str, str] = {}
        image: UInt8Array | None = None
        for path in (self.paths[self.image_index(number)], *others):
            if path in unreadable:
                continue
            try:
                image = read_gray(path, config.data.percentile_low, config.data.percentile_high)
                break
            except Exception as error:  # one bad file, whatever is wrong with it, must not end a week's run
                unreadable[path] = first_line(error)
        failed = image is None
        blank: UInt8Array = np.zeros((64, 64), np.uint8)
        crops = multi_crop(blank if image is None else image, config.augment, sample_rng(config.seed, number))
        return Sample(number, path, crops, unreadable, failed)


class Collate:
    """Samples of one micro-batch -> Batch; the masks come from (seed, first sample number)."""

    def __init__(self, config: PretrainConfig) -> None:
        self.seed = config.seed
        # without the iBOT loss nothing would be learnt from masked patches
        self.probability = config.mask.probability if config.loss.ibot_weight > 0 else 0.0
        self.ratio = config.mask.ratio
        side = config.augment.global_size // config.model.patch_size
        self.grid = (side, side)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        crops = [sample.crops for sample in samples]
        size = np.random.SeedSequence((self.seed, _MASK_STREAM, samples[0].number)).generate_state(2, np.uint64)
        rng = random.Random(int(size[0]) << 64 | int(size[1]))
        grid_masks = batch_masks(2 * len(samples), self.grid, rng, self.probability, self.ratio)
        masks = torch.from_numpy(grid_masks).flatten(1)  # [2 B, N]
        weights = 1 / masks.sum(dim=1, keepdim=True).clamp_min(1)  # [2 B, 1]
        return Batch(
            global_crops=_stack([c.global_crops for c in crops]),
            local_crops=_stack([c.local_crops for c in crops]),
            masks=masks,
            mask_indices=masks.flatten().nonzero().flatten(),
            patch_weights=weights.expand_as(masks)[masks],
            paths=[sample.path for sample in samples],
            unreadable={path: reason for sample in samples for path, reason in sample.unreadable.items()},
            failed=any(sample.failed for sample in samples),
        )


def _stack(crops: Sequence[UInt8Array]) -> Tensor:
    """B arrays [C, S, S] -> [C B, 1, S, S]."""
    stacked = np.stack(crops, axis=1)  # [C, B, S, S]
    return torch.from_numpy(stacked).flatten(0, 1).unsqueeze(1)


class MicroBatches:
    """Sample numbers of this rank's micro-batches, one optimizer step after another."""

    def __init__(self, config: PretrainConfig, *, rank: int, ranks: int, first_sample: int, steps: int) -> None:
        self.batch, self.accumulate = config.optim.batch_size, config.optim.accumulate
        self.rank, self.ranks, self.first_sample, self.steps = rank, ranks, first_sample, steps

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(len(self)):
            start = self.first_sample + (index * self.ranks + self.rank) * self.batch
            yield list(range(start, start + self.batch))


def make_loader(
    dataset: CropDataset, config: PretrainConfig, batches: MicroBatches, device: torch.device
) -> DataLoader[Sample]:
    """The loader of one rank; iterating gives `Batch`es."""
    workers = config.data.workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=Collate(config),
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_prepare_worker if workers else None,
    )


def _prepare_worker(worker: int) -> None:
    """One thread each: the workers are the parallelism. And they outlive a stop signal sent to the whole job.

    Cluster managers signal every process of a job. The training process needs its workers to finish the step and
    save; a worker told to terminate therefore gives it a minute.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
