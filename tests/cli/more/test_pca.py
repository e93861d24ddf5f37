"""`dinocell pca`: tokens lie where the picture is, whatever the way of feeding it, and the grid shows every row."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dinocell.cli.more.pca import _backbones, draw, patch_tokens
from dinocell.core.errors import ConfigError
from dinocell.models import (
    DecoderConfig,
    ModelCard,
    SegmentationModel,
    VisionTransformer,
    ViTConfig,
    save_backbone,
    save_model,
)


def make_backbone(in_channels: int = 1) -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", depth=1, image_size=32, in_channels=in_channels, layerscale_init=1.0)
    return VisionTransformer(config).eval()


def two_halves(height: int, width: int) -> np.ndarray:
    """Flat on the left, striped on the right."""
    picture = np.full((height, width), 0.5, np.float32)
    picture[:, width // 2 :] += 0.4 * np.sin(np.arange(width - width // 2) * 1.3)
    return picture


@pytest.mark.parametrize(("mode", "grid"), [("resize", (4, 4)), ("pad", (2, 4)), ("tile", (5, 10))])
def test_grid_and_place_of_tokens(mode: str, grid: tuple[int, int]) -> None:
    tokens = patch_tokens(make_backbone(), two_halves(40, 80), mode, 32)  # type: ignore[arg-type]
    assert tokens.shape == (*grid, 192)
    half = grid[1] // 2
    left, right = tokens[:, : half - 1], tokens[:, half + 1 :]
    within = np.linalg.norm(left - left.mean((0, 1)), axis=2).mean()
    assert np.linalg.norm(left.mean((0, 1)) - right.mean((0, 1))) > 2 * within


def test_one_window_is_the_plain_forward_pass() -> None:
    backbone, picture = make_backbone(3), np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        pixels = (torch.from_numpy(picture).permute(2, 0, 1) - mean) / std
        expected = backbone.forward_features(pixels[None])["x_norm_patchtokens"][0].reshape(4, 4, -1)
    for mode in ("resize", "pad", "tile"):
        found = patch_tokens(backbone, picture, mode, 32)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_row_per_backbone_and_a_column_per_picture_and_mode(tmp_path: Path) -> None:
    save_backbone(tmp_path / "first", make_backbone(), {})
    for name, shape in (("b", (40, 60)), ("a", (50, 30))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), (255 * two_halves(*shape)).clip(0, 255).astype(np.uint8))
    out = tmp_path / "grid.png"
    weights = ["start=random", f"after={tmp_path / 'first'}"]
    draw([str(tmp_path / "b.png"), str(tmp_path / "a.png")], weights, out, modes=("resize", "tile"), size=32)
    grid = cv2.imread(str(out))
    single = tmp_path / "single.png"
    draw([str(tmp_path / "b.png")], weights[1:], single, modes=("resize",), size=32)
    one = cv2.imread(str(single))
    assert grid.shape[0] > one.shape[0] + 250  # three rows instead of two
    assert grid.shape[1] > 2 * one.shape[1]


def test_wrong_options_are_named(tmp_path: Path) -> None:
    save_backbone(tmp_path / "first", make_backbone(), {})
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.full((40, 40), 90, np.uint8))
    with pytest.raises(ConfigError, match="30 px is not a multiple of the patch of first, 8; try 24"):
        draw([str(image)], [str(tmp_path / "first")], tmp_path / "x.png", size=30)
    with pytest.raises(ConfigError, match="random needs other weights"):
        draw([str(image)], ["random"], tmp_path / "x.png", size=32)
    with pytest.raises(ConfigError, match="two rows of one name"):
        draw([str(image)], [str(tmp_path / "first")] * 2, tmp_path / "x.png", size=32)


def test_a_packaged_model_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1))
    save_model(
        tmp_path / "cells",
        SegmentationModel(backbone, DecoderConfig(neck_width=16), 1, 64, 64),
        ModelCard(crop_size=64),
    )
    monkeypatch.setattr("dinocell.models.packaged.PACKAGED", tmp_path)
    ((name, found, _),) = _backbones(["cells"])
    assert name == "cells"
    torch.testing.assert_close(found.state_dict(), backbone.state_dict())
