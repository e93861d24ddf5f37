"""Checkpoints that survive crashes: written atomically, verified before use, never the only copy.

A checkpoint is `step_00001000.pt` with its SHA-256 in `step_00001000.pt.sha256`. States contain only tensors, numbers,
text, lists and dicts, so that they load with `weights_only=True`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from dinocell.core import log
from dinocell.core.errors import CheckpointError, first_line
from dinocell.core.files import AtomicFile, atomic_write_text, load_file, sha256_of
from dinocell.training import distributed

_NAME = re.compile(r"step_(\d+)\.pt$")


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

    def set_best_aside(self) -> None:
        """Rename `best.pt`, if there is one, to `best_before.pt`: it is the best by a measure that no longer counts."""
        path = self.directory / "best.pt"
        if not distributed.is_main() or not path.is_file():
            return
        for name in (path.name, f"{path.name}.sha256"):
            if (self.directory / name).is_file():
                (self.directory / name).replace(self.directory / name.replace("best", "best_before", 1))
        log.warning(f"another measure decides which teacher is the best one: {path} is now best_before.pt")

    def _save(self, path: Path, state: dict[str, Any], prune: bool) -> Path:
        problem = ""
        if distributed.is_main():
            try:
                self._write(path, state)
                if prune:
                    self._prune()
            except (OSError, RuntimeError) as error:
                problem = first_line(error)
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


def run_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of a pretraining run with its backbone: the best if kept, else the newest, if whole."""
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    for path in (folder / "best.pt", *reversed(CheckpointManager(folder).paths())):
        if not path.is_file():
            continue
        problem = verify(path)
        if problem is None:
            return path
        log.warning(f"{path} is passed over: {problem}")
    return None
