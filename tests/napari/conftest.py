"""A tiny network in a model folder; its cells mean nothing, but they are the same wherever it runs."""

from pathlib import Path

import pytest
import torch

from dinocell.models import DecoderConfig, SegmentationModel, VisionTransformer, ViTConfig, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
    model = SegmentationModel(VisionTransformer(config), DecoderConfig(neck_width=16), 1, 64, 64)
    last = [module for module in model.decoder.heads.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        assert last.bias is not None
        last.bias -= model(torch.randn(4, 1, 64, 64)).mean()  # half of the pixels are cells
    meta = {"objective": {"kind": "semantic", "min_size": 5}, "training": {"diameter": 20.0}}
    return save_model(tmp_path_factory.mktemp("model") / "tiny", model, meta)
