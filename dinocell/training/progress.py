"""Record of a training run: metrics.jsonl, TensorBoard and one console line per step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinocell.core.files import atomic_write_text
from dinocell.core.log import format_duration, format_number, info, warning


class Lap(NamedTuple):
    """One stretch between two log lines: its seconds, images per second, and the share of time waited for data."""

    seconds: float
    images_per_second: float
    data_wait: float


class StepTimer:
    """Wall time of training steps between two log lines, and the part of it spent waiting for data."""

    def __init__(self) -> None:
        self.images = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the lap: validation, checkpoints."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def lap(self) -> Lap:
        """Finish the lap since the last call and start the next one."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        lap = Lap(seconds, self.images / seconds, min(1.0, self._waited / seconds))
        self.images, self._waited, self._start = 0, 0.0, time.perf_counter()
        return lap


class RunLogger:
    """Records one training run: `metrics.jsonl`, TensorBoard and one console line per step.

    `metrics.jsonl` has one object per line: `step`, `split` ("train", "validate", "timing", …) and the numbers. When a
    run resumes at `resume_step`, the lines past it are dropped first, so that the file never contains a step twice.
    """

    def __init__(
        self,
        output_dir: Path,
        total_steps: int,
        *,
        enabled: bool = True,
        tensorboard: bool = True,
        resume_step: int = 0,
    ) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.total_steps = total_steps
        self.enabled = enabled
        self._first_step = resume_step
        self._start = time.monotonic()
        self._writer: Any = None
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(self.path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._writer = _tensorboard(Path(output_dir) / "tensorboard", resume_step) if tensorboard else None

    def log(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """Append one line; `step` counts finished optimizer steps (the first is 1)."""
        if not self.enabled:
            return
        numbers = {name: _json_number(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def progress(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        images_per_second: float | None = None,
        data_wait: float | None = None,
        mfu: float | None = None,
    ) -> None:
        """Print `step 12/400 · loss 3.21 · lr 7.07e-05 · 3.1 images/s · data wait 2 % · MFU 31 % · 3 min 20 s left`.

        `data_wait` and `mfu` (share of the machine's matrix-product rate) are fractions in [0, 1].
        """
        if not self.enabled:
            return
        parts = [f"step {step}/{self.total_steps}"]
        parts += [f"{name} {format_number(value)}" for name, value in metrics.items()]
        if images_per_second is not None:
            parts.append(f"{images_per_second:.3g} images/s")
        if data_wait is not None:
            parts.append(f"data wait {data_wait:.0%}")
        if mfu is not None:
            parts.append(f"MFU {mfu:.0%}")
        done = max(step - self._first_step, 1)
        left = (time.monotonic() - self._start) / done * (self.total_steps - step)
        parts.append(f"{format_duration(left)} left")
        info(" · ".join(parts))

    def image(self, step: int, name: str, rgb: np.ndarray) -> None:
        """Add an (H, W, 3) uint8 image to TensorBoard."""
        if self.enabled and self._writer is not None:
            self._writer.add_image(name, rgb, step, dataformats="HWC")

    def info(self, message: str) -> None:
        """Print a line if this process records."""
        if self.enabled:
            info(message)

    def warning(self, message: str) -> None:
        """Print a warning if this process records."""
        if self.enabled:
            warning(message)

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def read_metrics(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, of one split if given; a line cut short by a crash is left out."""
    rows = []
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if split is None or row.get("split") == split:
            rows.append(row)
    return rows


def _json_number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None  # JSON has no NaN


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _tensorboard(directory: Path, resume_step: int) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter
    # purge_step hides what an interrupted run wrote past its last checkpoint
    return SummaryWriter(str(directory), purge_step=resume_step + 1 if resume_step else None)
