"""One decorator for the compiled loops of reading and curation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(function: Loop) -> Loop:
    """Compile with numba, IEEE arithmetic unchanged, cached on disk where some folder is writable."""
    faster: Any
    try:
        faster = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no writable cache folder: compile in each process instead
        faster = numba.njit(nogil=True)(function)
    return cast(Loop, faster)
