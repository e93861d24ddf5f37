"""Files that are whole or absent, without torch."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a killed process leaves the old content or the new one, never half of it."""
    # plain strings: pathlib costs as much as the system calls, a hundred thousand times over
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")  # noqa: PTH118
    try:
        try:
            _write(temporary, data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, data)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(path: str, data: bytes | memoryview) -> None:
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123
        left = memoryview(data).cast("B")
        while left:  # one write may take only a part
            left = left[file.write(left) :]


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))
