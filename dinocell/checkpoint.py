"""Checkpoints that survive crashes: written atomically, verified before use, never the only copy.

A checkpoint is `step_00001000.pt` with its SHA-256 in `step_00001000.pt.sha256`. States hold only tensors, numbers,
text, lists and dicts, so that they load with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import signal
import threading
import zipfile
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from dinocell import distributed, log
from dinocell.errors import CheckpointError

EXIT_STOPPED = 75  # a run that was asked to stop, saved and left (EX_TEMPFAIL: run it again to continue)
_NAME = re.compile(r"step_(\d+)\.pt$")


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never half of it."""
    with AtomicFile(Path(path)) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


class AtomicFile:
    """A temporary file beside `path` that replaces it on success and disappears on failure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)


def load_file(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a torch file without running code from it.

    Raises:
        CheckpointError: the file is missing, truncated, no torch file, or holds arbitrary objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; check the path")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read ({path.stat().st_size} bytes: {reason[:160]}); "
            "it is damaged or not a weights-only PyTorch file, download or write it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {str(path)!r} holds a {type(state).__name__}, not a dict of tensors")
    return state


class CheckpointManager:
    """The checkpoints of one run: `step_*.pt`, of which the newest `keep` stay, and `best.pt`."""

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = max(keep, 1)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` with its step; rank 0 writes, every rank waits.

        Raises:
            CheckpointError: the disk refused; older checkpoints are untouched.
        """
        return self._save(self.directory / f"step_{step:08d}.pt", {"step": step, **state}, prune=True)

    def save_best(self, step: int, state: dict[str, Any]) -> Path:
        """Write `best.pt`, replacing the previous one."""
        return self._save(self.directory / "best.pt", {"step": step, **state}, prune=False)

    def _save(self, path: Path, state: dict[str, Any], prune: bool) -> Path:
        problem = ""
        if distributed.is_main():
            try:
                self._write(path, state)
                if prune:
                    self._prune()
            except (OSError, RuntimeError) as error:
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if distributed.any_rank(bool(problem)):
            raise CheckpointError(
                f"checkpoint {str(path)!r} could not be written ({problem or 'see rank 0'}); free disk space or change "
                "output_dir and run the same command again: it continues from the last good checkpoint"
            )
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        # The sidecar comes last: a checkpoint without one is an interrupted write. Where a file is replaced, both
        # digests stand in it meanwhile: whichever file a crash leaves is whole.
        sidecar = path.with_name(path.name + ".sha256")
        with AtomicFile(path) as temporary:
            torch.save(state, temporary)
            digest = sha256_of(temporary)
            if path.is_file() and sidecar.is_file():
                atomic_write_text(sidecar, f"{sidecar.read_text(encoding='utf-8').split()[0]}\n{digest}\n")
        atomic_write_text(sidecar, digest + "\n")

    def _prune(self) -> None:
        for path in self.paths()[: -self.keep]:
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)
        for leftover in self.directory.glob(".step_*.tmp"):
            leftover.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Step checkpoints, oldest first."""
        found = [p for p in self.directory.glob("step_*.pt") if _NAME.search(p.name)]
        return sorted(found, key=lambda p: int(_NAME.search(p.name).group(1)))  # type: ignore[union-attr]

    def load_latest(self, map_location: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None; a damaged one is named in a warning and passed over.

        All ranks load the one that rank 0 found whole.
        """
        chosen = distributed.broadcast_object(self._newest_whole() if distributed.is_main() else None)
        if chosen is None:
            return None
        state = load_file(chosen, map_location)
        return int(state["step"]), state

    def _newest_whole(self) -> Path | None:
        for path in reversed(self.paths()):
            problem = verify(path)
            if problem is None:
                return path
            log.warning(f"checkpoint {str(path)!r} is passed over: {problem}; trying the one before it")
        return None


def verify(path: Path) -> str | None:
    """None if the checkpoint's bytes are those that were written, else the problem in words."""
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.is_file():
        return "its checksum file is missing, the write was interrupted"
    if sha256_of(path) not in sidecar.read_text(encoding="utf-8").split():
        return "its checksum differs, the file is truncated or damaged"
    return None


def seed_generators(seed: int) -> None:
    """Start Python's, NumPy's and torch's global generators from one seed: two runs begin, and are saved, alike."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators as plain tensors and lists."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *map(float, numpy_state[2:])],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


_stopped_by = ""


def stopped_by() -> str:
    """The signal that ended this process's last training loop early (`SIGTERM` or `SIGUSR2`), or ""."""
    return _stopped_by


def forget_stop() -> None:
    """Start a new run: what stopped an earlier one in this process no longer counts."""
    global _stopped_by
    _stopped_by = ""


_early = 0


def note_early_term() -> None:
    """Remember a SIGTERM that comes before the training loop: the next `StopSignal` starts with it.

    For launchers whose own handler drops SIGTERM, as submitit's does.
    """
    global _early
    _early = 0

    def note(number: int, frame: FrameType | None) -> None:
        global _early
        _early = 1 + StopSignal.SIGNALS.index(signal.Signals(number))

    signal.signal(signal.SIGTERM, note)


class StopSignal:
    """Notices SIGTERM and SIGUSR2 (SLURM's warning through submitit) so that the loop can save and leave.

    Use as a context manager around the training loop and ask `requested()` once a step. A signal only leaves a note:
    it may come while a checkpoint is written, while validating, or several times.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # in rising rank: SIGUSR2 also asks to be started again

    def __init__(self) -> None:
        self._received = 0  # 0 for nothing, else 1 + the place in SIGNALS
        self._previous: dict[int, Any] = {}
        self.name = ""

    def __enter__(self) -> StopSignal:
        global _early
        forget_stop()
        self._received, _early = max(self._received, _early), 0
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, 1 + self.SIGNALS.index(signal.Signals(number)))
        if _stopped_by:  # leaving already; a SIGUSR2 after a SIGTERM still asks for another start
            self._settle(self._received)

    @property
    def received(self) -> bool:
        """Whether this process was asked to stop; no collective call, ranks may differ."""
        return self._received > 0

    def requested(self) -> bool:
        """Whether any rank was asked to stop; a collective call, every rank gets the same answer."""
        asked = distributed.max_rank(self._received)
        if asked:
            self._settle(asked)
        return bool(asked)

    def _settle(self, asked: int) -> None:
        global _stopped_by
        _stopped_by = self.name = self.SIGNALS[asked - 1].name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
