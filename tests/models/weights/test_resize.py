from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinocell.models.weights.resize import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PatchResize,
    fold_rgb_to_gray,
    interpolate_grid,
    resize_patch_filters,
    unfold_gray_to_rgb,
)


def smooth(count: int, side: int) -> Tensor:
    """Images and filters as they are in practice: neighbouring pixels alike."""
    return F.interpolate(torch.randn(count, 3, 4, 4), size=(side, side), mode="bicubic")


@pytest.mark.parametrize(("method", "ratio"), [("pinv", 0.994), ("bicubic", (8 / 14) ** 2), ("bicubic_scaled", 1.0)])
def test_size_of_embeddings_after_14_to_8(method: PatchResize, ratio: float) -> None:
    """Plain bicubic shrinks embeddings to 0.327 of their norm; the pseudo-inverse keeps them (0.994)."""
    torch.manual_seed(0)
    filters, patches = smooth(256, 14), torch.randn(256, 3, 1, 1).expand(-1, -1, 14, 14)
    before = F.conv2d(patches, filters)
    resized = F.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True)
    after = F.conv2d(resized, resize_patch_filters(filters, 8, method))
    assert float(after.norm() / before.norm()) == pytest.approx(ratio, abs=0.003)


def test_pinv_is_the_least_squares_solution() -> None:
    """FlexiViT eq. 4: min over ŵ of E_x (⟨x, w⟩ − ⟨B x, ŵ⟩)² for white x, B the antialiased resize of a whole patch."""
    torch.manual_seed(0)
    filters = torch.randn(5, 1, 14, 14, dtype=torch.float64)
    basis = torch.eye(196, dtype=torch.float64).reshape(196, 1, 14, 14)
    resize = F.interpolate(basis, size=(8, 8), mode="bicubic", antialias=True).flatten(1)  # [196, 64] = Bᵀ
    expected = torch.linalg.lstsq(resize, filters.flatten(1).T).solution.T.reshape(5, 1, 8, 8)
    torch.testing.assert_close(resize_patch_filters(filters, 8, "pinv"), expected)


def test_pinv_upsizing_keeps_every_embedding() -> None:
    """8→14 loses nothing: any 8-px patch, enlarged, embeds as before."""
    torch.manual_seed(0)
    filters, patches = torch.randn(6, 3, 8, 8), torch.randn(9, 3, 8, 8)
    enlarged = F.interpolate(patches, size=(14, 14), mode="bicubic", antialias=True)
    after = F.conv2d(enlarged, resize_patch_filters(filters, 14))
    torch.testing.assert_close(after, F.conv2d(patches, filters), rtol=1e-3, atol=1e-3)


def test_gray_folding_is_exact() -> None:
    torch.manual_seed(0)
    filters, bias, gray = torch.randn(32, 3, 8, 8) * 0.1, torch.randn(32), torch.rand(4, 1, 24, 24)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = F.conv2d((gray - mean) / std, filters, bias, stride=8)
    folded = F.conv2d(gray, *fold_rgb_to_gray(filters, bias), stride=8)
    assert float((folded - expected).abs().max() / expected.abs().max()) < 1e-5


def test_spreading_gray_over_rgb_is_exact_for_gray_images_and_undone_by_folding() -> None:
    torch.manual_seed(0)
    filters, bias, gray = torch.randn(32, 1, 8, 8) * 0.1, torch.randn(32), torch.rand(4, 1, 24, 24)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rgb, rgb_bias = unfold_gray_to_rgb(filters, bias)
    expected = F.conv2d(gray, filters, bias, stride=8)
    spread = F.conv2d((gray - mean) / std, rgb, rgb_bias, stride=8)
    assert float((spread - expected).abs().max() / expected.abs().max()) < 1e-5
    for result, original in zip(fold_rgb_to_gray(rgb, rgb_bias), (filters, bias), strict=True):
        torch.testing.assert_close(result, original, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (True, 0.0)])
def test_interpolated_positions_of_a_ramp_stay_a_ramp(antialias: bool, offset: float) -> None:
    """Away from the border a ramp keeps its value at the centres of the new cells (0.136 apart for the two offsets)."""
    ramp = torch.arange(16.0).reshape(1, 1, 16, 1).expand(1, 16, 16, 1).flatten(1, 2)
    out = interpolate_grid(ramp, (8, 8), antialias=antialias, offset=offset).unflatten(1, (8, 8))[0, :, :, 0]
    scale = 16 / (8 + offset)
    expected = (torch.arange(8) + 0.5) * scale - 0.5
    torch.testing.assert_close(out[4, 2:6], expected[2:6], rtol=0, atol=0.04)
