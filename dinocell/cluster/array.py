"""Job arrays: which tasks of an array are done, so that only the others are submitted again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinocell.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Array:
    """An array of `count` tasks over one command line, remembered in a folder until its results are merged."""

    folder: Path
    count: int

    @staticmethod
    def of(run_folder: Path, stage: str, arguments: Sequence[str], count: int) -> Array:
        """The array of this command line: the same one, with its finished tasks, when it was submitted before."""
        key = hashlib.sha256(json.dumps([stage, *arguments, count]).encode()).hexdigest()[:10]
        return Array(folder=(run_folder / "jobs" / f"array-{key}").absolute(), count=count)

    def begin(self) -> None:
        """Start remembering; an array that has begun keeps its time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._began.exists():
            self._began.touch()

    @property
    def since(self) -> float:
        """Time of the array's first submission, by the clock of the file system; seconds since 1970."""
        return self._began.stat().st_mtime

    @property
    def _began(self) -> Path:
        return self.folder / "began"

    def _done(self, index: int) -> Path:
        return self.folder / f"task-{index}-of-{self.count}.done"

    def finish(self, index: int) -> None:
        """Note that a task has done its share."""
        self._done(index).touch()

    def missing(self) -> list[int]:
        """Tasks that have not finished."""
        return [index for index in range(self.count) if not self._done(index).is_file()]

    def check_complete(self) -> None:
        """Refuse to merge before every task has finished.

        Raises:
            DataError: some have not; they are named.
        """
        missing = self.missing()
        if missing:
            named = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
            raise DataError(
                f"{len(missing)} of {self.count} tasks have not finished ({named}; their logs say why); run the same "
                "command again: only they are submitted, and then merged with the others"
            )

    def close(self) -> None:
        """Forget the tasks once they are merged: the same command then starts over."""
        shutil.rmtree(self.folder, ignore_errors=True)
