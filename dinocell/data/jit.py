"""One decorator for the compiled loops of reading and curation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """Compile with numba, IEEE arithmetic unchanged, cached on disk where some folder is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no writable cache folder: compile in each process instead
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
