"""The backbone against upstream DINOv2 (outputs recorded by tests/golden/models_generate.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinocell.models import VisionTransformer, ViTConfig

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "models_vit.json").read_text())


def load_fill() -> Any:
    spec = importlib.util.spec_from_file_location("models_fill", GOLDEN / "models_fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = load_fill()


def build(case: dict[str, Any]) -> VisionTransformer:
    fields = {key: value for key, value in case.items() if key != "inputs"}
    return FILL.fill(VisionTransformer(ViTConfig(**fields, in_channels=3)))


@pytest.mark.parametrize("name", ABOUT["cases"])
def test_every_token_equals_upstream(name: str) -> None:
    case = ABOUT["cases"][name]
    model = build(case)
    recorded = np.load(GOLDEN / "models_vit.npz")
    for images, height, width in case["inputs"]:
        patches = (height // case["patch_size"]) * (width // case["patch_size"])
        masks = FILL.mask(images, patches) if "masked" in name else None
        with torch.no_grad():
            out = model.forward_features(FILL.image((images, 3, height, width)), masks)
        tokens = torch.cat([out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]], 1)
        expected = torch.from_numpy(recorded[f"{name}/{images}x{height}x{width}"])
        difference = (tokens - expected).norm(dim=-1) / expected.norm(dim=-1)  # [B, 1 + R + N]
        assert difference.max() < 1e-5
