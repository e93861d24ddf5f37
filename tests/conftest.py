"""Shared by all tests: a headless matplotlib, few threads, and the folder of real images where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by DINOCELL_REAL_DATA (`labelled/`, `unlabelled/`); the test is skipped without it."""
    folder = os.environ.get("DINOCELL_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DINOCELL_REAL_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: the order of a sum, so its last digit, depends on how many there are."""
    import torch  # here, as not every test needs it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
