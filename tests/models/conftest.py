from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinocell.models import Features

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def fill() -> Any:
    """tests/golden/models_fill.py, the formula behind the recorded values."""
    spec = importlib.util.spec_from_file_location("models_fill", GOLDEN / "models_fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def tokens() -> Any:
    """All normed tokens of a backbone's output: CLS, registers, patches, [B, 1 + R + N, D]."""

    def join(out: Features) -> Tensor:
        return torch.cat([out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]], dim=1)

    return join


@pytest.fixture
def worst() -> Any:
    """Largest relative difference over tokens."""

    def measure(result: Tensor, expected: Tensor) -> float:
        return float(((result - expected).norm(dim=-1) / expected.norm(dim=-1)).max())

    return measure
