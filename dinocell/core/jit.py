"""One decorator for every compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*, fast: bool = False) -> Callable[[Loop], Loop]:
    """Compile with numba, without the GIL, cached on disk where a folder can be written.

    A read-only install without a writable user cache has no place for the cache: the loop is then compiled in each
    process (seconds) instead of failing at import.

    Args:
        fast: allow fused multiply-add and NumPy's division by zero; otherwise IEEE arithmetic is unchanged.
    """
    options: dict[str, Any] = {"nogil": True}
    if fast:
        options |= {"error_model": "numpy", "fastmath": {"contract"}}

    def compile_loop(function: Loop) -> Loop:
        try:
            return cast(Loop, numba.njit(cache=True, **options)(function))
        except RuntimeError:  # numba: "no locator available", no writable cache folder
            return cast(Loop, numba.njit(**options)(function))

    return compile_loop
