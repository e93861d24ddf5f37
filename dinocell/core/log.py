"""Console output: messages, durations, progress with the time left."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

T = TypeVar("T")
PLAIN_INTERVAL = 10.0  # seconds between progress lines when the output is a file


def _console() -> Console:
    # A log file has no width: lines there must not be broken at 80 columns.
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
