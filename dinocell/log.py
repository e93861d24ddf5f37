"""What a person sees while it runs, and what stays: console, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

T = TypeVar("T")
PLAIN_INTERVAL = 10.0  # seconds between progress lines when the output is a file


def _console() -> Console:
    # A log file has no width of its own: lines there must not be broken at 80 columns.
    return Console(stderr=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 400)


def _is_main() -> bool:
    """Rank 0 by the launcher's variables; torch is not imported for a log line."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
    return rank == "0"


def info(message: str) -> None:
    """Print a line on rank 0."""
    if _is_main():
        _console().print(message, markup=False)


def warning(message: str) -> None:
    """Print a warning on standard error, on rank 0."""
    if _is_main():
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {message}", style="yellow", markup=False)


def format_duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 07 min`, `2 d 4 h`."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_number(value: float) -> str:
    """Four significant digits, and never `0.0000` for a number that is not zero."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.2e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"


def progress(iterable: Iterable[T], description: str, total: int | None = None, unit: str = "images") -> Iterator[T]:
    """Iterate with a bar, the rate and the time left; plain lines every ten seconds when not on a terminal."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not _is_main():
        yield from iterable
    elif sys.stdout.isatty():
        yield from _bar(iterable, description, total, unit)
    else:
        yield from _lines(iterable, description, total, unit)


def _bar(iterable: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    start = time.monotonic()
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=_console()) as bar:
        task = bar.add_task(description, total=total, rate="")
        for done, item in enumerate(iterable, 1):
            yield item
            bar.update(task, advance=1, rate=_rate(done, total, start, unit))


def _lines(iterable: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            info(f"{description}: {done}{f'/{total}' if total else ''} · {_rate(done, total, start, unit)}")
    info(f"{description}: {done} {unit} in {format_duration(time.monotonic() - start)}")


def _rate(done: int, total: int | None, start: float, unit: str) -> str:
    rate = done / max(time.monotonic() - start, 1e-9)
    left = f" · {format_duration((total - done) / rate)} left" if total else ""
    return f"{rate:.3g} {unit}/s{left}"


class RunLogger:
    """Records one training run: `metrics.jsonl`, TensorBoard and one console line a step.

    `metrics.jsonl` holds one object a line: `step`, `split` ("train", "validate", "timing", …) and the numbers. When a
    run resumes at `resume_step`, the lines past it are dropped first, so that the file never holds a step twice.
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
        """Add an (H, W, 3) uint8 picture to TensorBoard."""
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
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(path)


def _tensorboard(directory: Path, resume_step: int) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter
    # purge_step hides what an interrupted run wrote past its last checkpoint
    return SummaryWriter(str(directory), purge_step=resume_step + 1 if resume_step else None)
