"""The backbone against upstream DINOv2 (outputs recorded by tests/golden/models_generate.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinocell.models import VisionTransformer, ViTConfig

CASES = json.loads((Path(__file__).parents[2] / "golden" / "models_vit.json").read_text())["cases"]


@pytest.mark.parametrize("name", CASES)
def test_every_token_equals_upstream(name: str, golden: Path, fill: Any, tokens: Any, worst: Any) -> None:
    case = CASES[name]
    fields = {key: value for key, value in case.items() if key != "inputs"}
    model = fill.fill(VisionTransformer(ViTConfig(**fields, in_channels=3)))
    recorded = np.load(golden / "models_vit.npz")
    for images, height, width in case["inputs"]:
        patches = (height // case["patch_size"]) * (width // case["patch_size"])
        masks = fill.mask(images, patches) if "masked" in name else None
        with torch.no_grad():
            out = model.forward_features(fill.image((images, 3, height, width)), masks)
        assert worst(tokens(out), torch.from_numpy(recorded[f"{name}/{images}x{height}x{width}"])) < 1e-5
