"""User-given paths, local or remote: `https://…` is fetched into iopath's cache on first use."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from dinocell.errors import ConfigError


@lru_cache(maxsize=1)
def _manager() -> Any:
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager


def is_remote(path: str | Path) -> bool:
    """Whether the path names something that has to be fetched first."""
    return "://" in str(path)


def local_path(path: str | Path) -> Path:
    """The path on this machine; a remote file is fetched into iopath's cache once.

    Raises:
        ConfigError: a remote file cannot be had.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    try:
        return Path(_manager().get_local_path(str(path)))
    except Exception as error:  # whatever the transport raises, the user needs the one line
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{str(path)!r} cannot be fetched ({reason}); download it and give the local path") from error
