from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dinocell.core.errors import ConfigError
from dinocell.models import VisionTransformer, ViTConfig, choose_backend
from dinocell.models.vit import cpu_attention
from dinocell.models.vit.attention import Backend, attend
from dinocell.models.vit.block import Block, drop_path_subset


def tiny(**changes: Any) -> ViTConfig:
    fields: dict[str, Any] = {"arch": "vit_tiny", "depth": 2, "image_size": 32, "registers": 2, "layerscale_init": 1.0}
    return ViTConfig(**(fields | changes))


def test_list_of_crops_gives_what_each_crop_gives_alone(tokens: Any) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(tiny()).eval()
    crops = [torch.rand(2, 1, 32, 32), torch.rand(3, 1, 16, 24), torch.rand(1, 1, 8, 8)]
    masks = [torch.rand(2, 16) > 0.5, None, None]
    together = model(crops, masks)
    for crop, mask, out in zip(crops, masks, together, strict=True):
        torch.testing.assert_close(tokens(out), tokens(model(crop, mask)), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_list_are_those_of_the_crops(tokens: Any) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(tiny())
    crops = [torch.rand(2, 1, 32, 32), torch.rand(3, 1, 16, 16)]
    sum(tokens(out).square().mean() for out in model(crops)).backward()
    together = model.blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    for crop in crops:
        tokens(model(crop)).square().mean().backward()
    torch.testing.assert_close(together, model.blocks[0].attn.qkv.weight.grad, rtol=1e-4, atol=1e-6)


def test_masked_patches_carry_no_information_of_their_pixels(tokens: Any) -> None:
    model = VisionTransformer(tiny()).eval()
    image = torch.rand(1, 1, 32, 32)
    other = image.clone()
    other[..., :8, :8] = 0.123
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 0] = True
    torch.testing.assert_close(tokens(model(image, mask)), tokens(model(other, mask)))
    assert not torch.allclose(tokens(model(image)), tokens(model(other)))


def test_rows_and_columns_are_not_swapped() -> None:
    """A bright patch at (row 0, column 2) of a 2×4 grid moves exactly the third patch token before attention."""
    model = VisionTransformer(tiny(registers=0)).eval()
    dark, bright = torch.zeros(1, 1, 16, 32), torch.zeros(1, 1, 16, 32)
    bright[..., :8, 16:24] = 1
    moved = (model.embed(bright) - model.embed(dark)).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + 2]


@pytest.mark.parametrize(("images", "rate", "kept"), [(10, 0.2, 8), (3, 0.4, 1), (1, 0.9, 1), (16, 0.2, 12)])
def test_drop_path_keeps_upstreams_number_of_images(images: int, rate: float, kept: int) -> None:
    assert drop_path_subset(images, rate) == kept


def test_drop_path_leaves_the_dropped_images_and_scales_the_kept_ones() -> None:
    torch.manual_seed(0)
    block = Block(64, 2, layerscale_init=1.0, drop_path=0.75).train()
    with torch.no_grad():
        block.ls2.gamma.zero_()  # only the attention branch acts
    crops = [torch.randn(8, 5, 64), torch.randn(4, 3, 64)]
    out = block(crops)
    with torch.no_grad():
        full = block.eval()(crops)
    for x, y, whole in zip(crops, out, full, strict=True):
        changed = [i for i in range(len(x)) if not torch.equal(x[i], y[i])]
        assert len(changed) == len(x) // 4
        torch.testing.assert_close(y[changed] - x[changed], 4 * (whole[changed] - x[changed]), rtol=1e-4, atol=1e-5)


def test_drop_path_keeps_the_expected_output() -> None:
    torch.manual_seed(0)
    block = Block(32, 1, layerscale_init=0.1, drop_path=0.5)
    with torch.no_grad():
        block.ls2.gamma.zero_()
        x = torch.randn(6, 4, 32)
        expected = block.eval()([x])[0]
        block.train()
        mean = torch.stack([block([x])[0] for _ in range(600)]).mean(0)
    assert (mean - expected).norm() < 0.1 * (expected - x).norm()


def test_activation_checkpointing_changes_no_gradient(tokens: Any) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(tiny(drop_path=0.5)).train()
    grads = []
    for switched in (False, True):
        model.zero_grad()
        model.activation_checkpointing = switched
        torch.manual_seed(1)
        tokens(model(torch.ones(4, 1, 32, 32))).square().mean().backward()
        grads.append(model.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def test_blocks_compile_without_a_graph_break_and_keep_their_names(tokens: Any) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(tiny(drop_path=0.5)).train()
    crops = [torch.rand(4, 1, 32, 32), torch.rand(6, 1, 16, 16)]
    names = list(model.state_dict())
    torch.manual_seed(1)
    expected = [tokens(out) for out in model(crops)]
    model.compile_blocks(backend="eager", fullgraph=True)
    torch.manual_seed(1)
    for out, before in zip(model(crops), expected, strict=True):
        torch.testing.assert_close(tokens(out), before)
    assert list(model.state_dict()) == names


def test_random_gray_backbone_sees_a_standardised_image() -> None:
    """An image of ImageNet's gray mean embeds near zero, as a normalised one does in an RGB model."""
    torch.manual_seed(0)
    model = VisionTransformer(tiny())
    mean = model.patch_embed(torch.full((1, 1, 8, 8), 0.449)).norm()
    white = model.patch_embed(torch.ones(1, 1, 8, 8)).norm()
    assert mean < 0.35 * white


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vit_huge"}, "vit_huge"),
        ({"image_size": 518}, "512 or 520"),
        ({"in_channels": 2}, "in_channels"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"registers": -1}, "registers"),
        ({"patch_size": 0}, "patch_size"),
    ],
)
def test_unfit_configurations_are_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_image_of_another_size_than_whole_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="30×32"):
        VisionTransformer(tiny())(torch.zeros(1, 1, 30, 32))


def reference_attention(qkv: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """Softmax attention image by image, written out in float64."""
    out, start = [], 0
    for images, count in groups:
        for _ in range(images):
            q, k, v = qkv[start : start + count].double().permute(1, 2, 0, 3)
            weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
            out.append((weights @ v).transpose(0, 1).flatten(1))
            start += count
    return torch.cat(out)


GROUPS = [(2, 7), (3, 4), (1, 1)]


def test_sdpa_attention_stays_within_each_image() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(27, 3, 2, 16)
    torch.testing.assert_close(attend(qkv, GROUPS, "sdpa"), reference_attention(qkv, GROUPS).float())


@pytest.mark.parametrize("block", [2**20, 600])
def test_bfloat16_cpu_gradients_are_as_near_float32s_as_the_fused_kernels(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole heads at once, and rows of one head at a time."""
    monkeypatch.setattr(cpu_attention, "BLOCK_SCORES", block)
    torch.manual_seed(0)
    qkv = torch.randn(2 * 100, 3, 3, 64).bfloat16()
    weight = torch.randn(2 * 100, 3 * 64)

    def gradient(x: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        x = x.clone().requires_grad_()
        (attend(x, groups, "sdpa").float() * weight).sum().backward()
        assert x.grad is not None
        return x.grad.float()

    exact = gradient(qkv.float(), [(2, 100)])
    assert float((gradient(qkv, [(2, 100)]) - exact).norm() / exact.norm()) < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the packed kernels run on CUDA only")
@pytest.mark.parametrize("backend", ["varlen", "xformers"])
def test_packed_kernels_give_what_sdpa_gives(backend: Backend) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers.ops")
    torch.manual_seed(0)
    qkv = torch.randn(27, 3, 2, 64, device="cuda", dtype=torch.bfloat16)
    expected = reference_attention(qkv, GROUPS)
    torch.testing.assert_close(attend(qkv, GROUPS, backend).double(), expected, rtol=2e-2, atol=2e-2)


def test_varlen_receives_the_boundaries_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's contract (sequence i spans boundaries[i] to boundaries[i + 1]) played by plain attention."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def kernel(q: Tensor, k: Tensor, v: Tensor, start: Tensor, start_k: Tensor, longest: int, longest_k: int) -> Tensor:
        assert start.dtype == torch.int32 and torch.equal(start, start_k) and longest == longest_k == 7
        lengths = start.diff().tolist()
        flat = reference_attention(torch.stack([q, k, v], 1), [(1, n) for n in lengths])
        return flat.unflatten(1, q.shape[1:]).to(q.dtype)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    qkv = torch.randn(27, 3, 2, 16)
    torch.testing.assert_close(attend(qkv, GROUPS, "varlen"), attend(qkv, GROUPS, "sdpa"))


def test_packed_kernels_are_never_chosen_without_cuda_or_half_precision() -> None:
    assert choose_backend(torch.device("cpu"), torch.bfloat16)[0] == "sdpa"
    assert choose_backend(torch.device("cuda"), torch.float32)[0] == "sdpa"
    assert choose_backend(torch.device("cuda"), torch.bfloat16, groups=1)[0] == "sdpa"
