"""Batches made ahead of time by threads, in a fixed order.

Threads, not processes: the work is NumPy, OpenCV and compiled kernels, which release the interpreter, and the image
cache stays one copy. Nothing is left behind when the process is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinocell.core.cpu import usable_cores
from dinocell.finetune.data.crops import Sample
from dinocell.training.progress import StepTimer


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of crops.

    Attributes:
        image: preprocessed gray, float32 [B, 1, H, W].
        target: objective maps, float32 [B, K, H, W].
        weight: pixel weights M (§3.3.5), float32 [B, 1, H, W].
    """

    image: Tensor
    target: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(
            image=self.image.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            weight=self.weight.to(device, non_blocking=True),
        )


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into one batch."""
    return Batch(
        image=torch.from_numpy(np.stack([s.image for s in samples])[:, None]),  # [B, 1, H, W]
        target=torch.from_numpy(np.stack([s.target for s in samples])),  # [B, K, H, W]
        weight=torch.from_numpy(np.stack([s.weight for s in samples])[:, None]),  # [B, 1, H, W]
    )


def worker_count(requested: int, world_size: int = 1) -> int:
    """Threads to use: `requested`, or for -1 the cores a process has beyond the one that drives the device."""
    if requested >= 0:
        return requested
    return max(1, min(16, usable_cores() // world_size - 1))


class BatchLoader:
    """Iterates over the steps of a training; each item is the list of this process's micro-batches of one step.

    Args:
        sample: makes one sample from its number.
        batch_size: samples per step over all processes.
        rank, world_size: this process; it makes its contiguous part of each step's samples.
        accumulate: micro-batches of each process and step.
        steps: (first, past the last).
        workers: threads; 0 makes each batch when it is asked for.
        timer: counts the time spent waiting for samples.
    """

    def __init__(
        self,
        sample: Callable[[int], Sample],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulate: int,
        steps: tuple[int, int],
        workers: int,
        timer: StepTimer | None = None,
    ) -> None:
        self._sample, self._batch_size, self._rank = sample, batch_size, rank
        self._per_process = batch_size // world_size
        self._micro = self._per_process // accumulate
        self._steps, self._workers = steps, workers
        self._timer = timer or StepTimer()

    def numbers(self, step: int) -> range:
        """Sample numbers of this process in one step."""
        first = step * self._batch_size + self._rank * self._per_process
        return range(first, first + self._per_process)

    def __iter__(self) -> Iterator[list[Batch]]:
        if self._workers == 0:
            for step in range(*self._steps):
                with self._timer.waiting():
                    batches = self._collate([self._sample(n) for n in self.numbers(step)])
                yield batches
            return
        yield from self._threaded()

    def _threaded(self) -> Iterator[list[Batch]]:
        ahead = max(2, -(-2 * self._workers // self._per_process))
        pending: deque[list[Future[Sample]]] = deque()
        steps = iter(range(*self._steps))
        with ThreadPoolExecutor(self._workers, thread_name_prefix="crops") as pool:
            try:
                while True:
                    while len(pending) < ahead and (step := next(steps, None)) is not None:
                        pending.append([pool.submit(self._sample, n) for n in self.numbers(step)])
                    if not pending:
                        return
                    with self._timer.waiting():
                        samples = [future.result() for future in pending.popleft()]
                    yield self._collate(samples)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _collate(self, samples: list[Sample]) -> list[Batch]:
        return [collate(samples[i : i + self._micro]) for i in range(0, len(samples), self._micro)]
