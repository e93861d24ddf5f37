"""Record how other software names its DINO-family weights, and what it computes with them (models_layouts.{npz,json}).

    pip install torch transformers timm   # and a checkout of dinov2, see models_generate.py
    XFORMERS_DISABLED=1 PYTHONPATH=CHECKOUT python tests/golden/models_layouts_generate.py

Each case is a small model whose stored tensors are filled by name; only names, shapes and output tokens are recorded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from models_fill import image, value  # noqa: E402

COMMIT = "b8931f7bf91576930313be2c6d6af376033b35f0"
SHAPE: dict[str, Any] = {"patch_size": 14, "embed_dim": 192, "depth": 4, "num_heads": 3}
SIDE = 56
State = dict[str, torch.Tensor]


def filled(state: State) -> State:
    """The same names and shapes with the formula's values."""
    return {name: value(name, tuple(tensor.shape)) for name, tensor in state.items()}


def dinov2(chunks: int, registers: int) -> tuple[State, torch.Tensor]:
    """Upstream's class; `chunks` > 0 gives the names of its training checkpoints."""
    from dinov2.models.vision_transformer import DinoVisionTransformer

    options: dict[str, Any] = {"num_register_tokens": registers, "block_chunks": chunks, "init_values": 1.0}
    model = DinoVisionTransformer(img_size=SIDE, **SHAPE, **options).eval()
    state = filled(model.state_dict())
    model.load_state_dict(state)
    out = model.forward_features(image((1, 3, SIDE, SIDE)))
    tokens = [out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]]
    return state, torch.cat(tokens, dim=1)


def hugging_face(registers: int) -> tuple[State, torch.Tensor]:
    """transformers, with the names of the file that `save_pretrained` writes."""
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    options: dict[str, Any] = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, patch_size=14, image_size=SIDE, **options
    )
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        state = filled(load_file(file))
        save_file(state, file, {"format": "pt"})
        model = getattr(transformers, f"{name}Model").from_pretrained(folder).eval()
    return state, model(image((1, 3, SIDE, SIDE))).last_hidden_state


def timm_vit(architecture: str, **options: Any) -> tuple[State, torch.Tensor]:
    """timm; its plain ViT without LayerScale is DINO v1's network, names included."""
    import timm

    model = timm.create_model(
        architecture, img_size=SIDE, num_classes=0, global_pool="token", **SHAPE, **options
    ).eval()
    state = filled(model.state_dict())
    model.load_state_dict(state)
    return state, model.forward_features(image((1, 3, SIDE, SIDE)))


def record() -> dict[str, tuple[State, torch.Tensor]]:
    """Every layout's state and output tokens."""
    return {
        "dinov2": dinov2(0, 0),
        "dinov2_reg4": dinov2(0, 4),
        "dinov2_chunked": dinov2(2, 0),
        "hf": hugging_face(0),
        "hf_reg4": hugging_face(4),
        "timm": timm_vit("vit_small_patch14_dinov2"),
        "timm_reg4": timm_vit("vit_small_patch14_reg4_dinov2"),
        "dino_v1": timm_vit("vit_small_patch8_224"),
    }


if __name__ == "__main__":
    import timm
    import transformers

    torch.set_num_threads(1)
    with torch.no_grad():
        cases = record()
    np.savez_compressed(HERE / "models_layouts.npz", **{name: tokens.numpy() for name, (_, tokens) in cases.items()})
    layouts = {name: {key: list(tensor.shape) for key, tensor in state.items()} for name, (state, _) in cases.items()}
    versions = {"dinov2": COMMIT, "transformers": transformers.__version__, "timm": timm.__version__}
    about = {"versions": versions, "image_side": SIDE, "layouts": layouts}
    (HERE / "models_layouts.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
