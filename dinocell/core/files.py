"""Files and folders that are whole or absent, their checksums, and paths that may be remote."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dinocell.core.errors import CheckpointError, ConfigError, first_line

if TYPE_CHECKING:
    import torch


class AtomicFile:
    """A temporary file beside `path` that replaces it on success and disappears on failure.

    Args:
        path: the final name; its folder is made if absent.
        durable: flush the content to the disk before the replacement, so that a power cut leaves the old content or
            the new one. Without it only a killed process is covered, which suffices for files that are made again.
    """

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        self.path = Path(path)
        self.durable = durable
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.durable:
                    with self.temporary.open("rb") as file:
                        os.fsync(file.fileno())
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


class AtomicFolder:
    """A temporary folder beside `path` that takes its place on success and disappears on failure.

    A folder cannot replace another in one step, so that `path` is absent for a moment; a process killed just then
    leaves the old content beside it, as a hidden folder that ends in `.old`.

    Args:
        path: the final name; the folder it is in is made if absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._replace()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _replace(self) -> None:
        if not self.path.exists():
            self.temporary.rename(self.path)
            return
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        self.path.rename(old)
        self.temporary.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)


def atomic_write_bytes(path: str | Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never half of it.

    Args:
        path: its folder is made if absent.
        data: the content.
        durable: see `AtomicFile`.
    """
    with AtomicFile(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"), durable=durable)


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_file(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a torch file without running code from it.

    Raises:
        CheckpointError: the file is missing, truncated, not a torch file, or contains arbitrary objects.
    """
    import torch  # heavy; most callers of this module need none of it

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; check the path")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read ({path.stat().st_size} bytes: {first_line(error)[:160]}); "
            "it is damaged or not a weights-only PyTorch file, download or write it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {str(path)!r} contains a {type(state).__name__}, not a dict of tensors")
    return state


@lru_cache(maxsize=1)
def _manager() -> Any:
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager


def is_remote(path: str | Path) -> bool:
    """Report whether a path names something that has to be fetched first."""
    return "://" in str(path)


def local_path(path: str | Path) -> Path:
    """The path on this machine; a remote file is fetched into iopath's cache once.

    Raises:
        ConfigError: a remote file cannot be fetched.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    try:
        return Path(_manager().get_local_path(str(path)))
    except Exception as error:  # whatever the transport raises, the user needs the one line
        raise ConfigError(
            f"{str(path)!r} cannot be fetched ({first_line(error)}); download it and give the local path"
        ) from error
