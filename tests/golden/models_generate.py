"""Record upstream DINOv2's outputs for formula-filled weights into models_vit.{npz,json}; needs a checkout of dinov2.

git clone https://github.com/facebookresearch/dinov2 CHECKOUT && git -C CHECKOUT checkout b8931f7
XFORMERS_DISABLED=1 PYTHONPATH=CHECKOUT python tests/golden/models_generate.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from models_fill import fill, image, mask  # noqa: E402

COMMIT = "b8931f7bf91576930313be2c6d6af376033b35f0"
WIDTHS = {"vit_small": (384, 6), "vit_base": (768, 12), "vit_giant2": (1536, 24)}
PLAIN = {"registers": 0, "interpolate_offset": 0.1, "interpolate_antialias": False}
REG4 = {"registers": 4, "interpolate_offset": 0.0, "interpolate_antialias": True}
SMALL_14 = {"arch": "vit_small", "depth": 12, "patch_size": 14, "image_size": 518, "inputs": [[1, 70, 70], [1, 42, 98]]}
BASE_14 = {"arch": "vit_base", "depth": 2, "patch_size": 14, "image_size": 518, "inputs": [[1, 56, 56], [1, 98, 28]]}
SMALL_8 = {"arch": "vit_small", "depth": 2, "patch_size": 8, "image_size": 48, "inputs": [[1, 48, 48], [1, 72, 56]]}
MASKED_8 = {"arch": "vit_small", "depth": 2, "patch_size": 8, "image_size": 32, "inputs": [[3, 32, 32]]}
GIANT_14 = {"arch": "vit_giant2", "depth": 1, "patch_size": 14, "image_size": 56, "inputs": [[1, 42, 42]]}
CASES: dict[str, dict[str, Any]] = {
    "small_14": {**SMALL_14, **PLAIN},
    "small_14_reg4": {**SMALL_14, **REG4},
    "base_14": {**BASE_14, **PLAIN},
    "base_14_reg4": {**BASE_14, **REG4},
    "small_8": {**SMALL_8, **PLAIN},
    "small_8_masked_reg4": {**MASKED_8, **REG4},
    "giant2_14": {**GIANT_14, **PLAIN},
}


def upstream_model(case: dict[str, Any]) -> Any:
    """The upstream class with the case's shape and filled weights."""
    from dinov2.models.vision_transformer import DinoVisionTransformer

    width, heads = WIDTHS[case["arch"]]
    model = DinoVisionTransformer(
        img_size=case["image_size"],
        patch_size=case["patch_size"],
        embed_dim=width,
        depth=case["depth"],
        num_heads=heads,
        init_values=1e-5,
        block_chunks=0,
        ffn_layer="swiglufused" if case["arch"] == "vit_giant2" else "mlp",
        num_register_tokens=case["registers"],
        interpolate_offset=case["interpolate_offset"],
        interpolate_antialias=case["interpolate_antialias"],
    )
    return fill(model)


def record() -> dict[str, np.ndarray]:
    """Every normed token of every case and input: CLS, registers, patches."""
    arrays: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        model = upstream_model(case)
        for images, height, width in case["inputs"]:
            patches = (height // case["patch_size"]) * (width // case["patch_size"])
            masks = mask(images, patches) if "masked" in name else None
            with torch.no_grad():
                out = model.forward_features(image((images, 3, height, width)), masks)
            tokens = [out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]]
            arrays[f"{name}/{images}x{height}x{width}"] = torch.cat(tokens, dim=1).numpy()
    return arrays


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(HERE / "models_vit.npz", **record())  # type: ignore[arg-type]
    about = {"source": "facebookresearch/dinov2", "commit": COMMIT, "torch": torch.__version__, "cases": CASES}
    (HERE / "models_vit.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
