"""Files of the work on a large image: unnamed, or in a folder from which an interrupted run resumes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.errors import DataError
from dinocell.core.files import atomic_write_text
from dinocell.images.mapped import check_room, scratch_array

try:
    import fcntl
except ImportError:  # Windows has none: two runs on one image are then not distinguished
    fcntl = None  # type: ignore[assignment]

STATE = "state.json"
STAGES = ("network", "decoding", "cells", "writing")
"""In this order: what is lost in one is lost in those after it."""
LOCK = "lock"


class Scratch:
    """Arrays in unnamed files, gone with the process; nothing is remembered."""

    resumed = False
    """Whether arrays may hold what an earlier run left."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def array(self, name: str, shape: tuple[int, ...], dtype: Any, stage: str) -> NDArray[Any]:
        """A file-backed array that a stage fills; zeros unless an earlier run left it."""
        return scratch_array(shape, dtype, self.folder)

    def done(self, stage: str) -> int:
        """Steps of a stage that an earlier run finished; ask after its arrays have been made."""
        return 0

    def commit(self, *arrays: NDArray[Any], **stages: int) -> None:
        """Remember how many steps are done, after what they wrote is on disk."""

    def close(self, *, keep: bool = False) -> None:
        """Remove everything, or keep what is done for the next run."""


class KeptScratch(Scratch):
    """Arrays in files of a folder, with a record of what is done, so that an interrupted run resumes where it was.

    Args:
        folder: hidden folder of this image's work, made if absent.
        key: whatever the result depends on (image, model, options); work of another key is thrown away.

    Raises:
        DataError: another process works in this folder.
    """

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__(folder)
        self.path, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w")
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise DataError(f"{folder}: another run is working on this image") from error
        self._state = self._read()
        self.resumed = bool(self._state)

    def array(self, name: str, shape: tuple[int, ...], dtype: Any, stage: str) -> NDArray[Any]:
        """As `Scratch.array`, kept as NAME.dat."""
        file = self.path / f"{name}.dat"
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self._state and file.is_file() and file.stat().st_size == size:
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
        for lost in STAGES[STAGES.index(stage) :]:  # what is recorded as done went with this file
            self._state.pop(lost, None)
        file.unlink(missing_ok=True)
        check_room(size, self.path)
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

    def done(self, stage: str) -> int:
        """As `Scratch.done`."""
        return int(self._state.get(stage, 0))

    def commit(self, *arrays: NDArray[Any], **stages: int) -> None:
        """As `Scratch.commit`."""
        for array in arrays:
            if isinstance(array, np.memmap):
                array.flush()
        self._state |= stages
        atomic_write_text(self.path / STATE, json.dumps({"key": self.key, **self._state}))

    def close(self, *, keep: bool = False) -> None:
        """As `Scratch.close`."""
        self._lock.close()
        if not (keep and self._state):
            shutil.rmtree(self.path, ignore_errors=True)

    def _read(self) -> dict[str, int]:
        try:
            state = json.loads((self.path / STATE).read_text("utf-8"))
            if state.pop("key", None) == self.key:
                log.info(f"{self.path}: resumes where an earlier run stopped")
                return {name: int(value) for name, value in state.items()}
        except (OSError, ValueError, AttributeError):
            pass
        for file in self.path.glob("*.dat"):
            file.unlink()
        return {}
