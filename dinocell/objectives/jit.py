"""One decorator for every compiled kernel of the objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compiles `function` with numba, without the GIL, cached on disk where a folder can be written.

    A read-only install without a writable user cache has no place for the cache: the kernel is then compiled in
    each process (seconds) instead of failing at import.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba: "no locator available", no writable cache folder
        compiled = numba.njit(**options)(function)
    return compiled
