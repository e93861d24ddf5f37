"""The paper's ablations (§4.2) are one override each of the paper's recipe."""

from pathlib import Path

import pytest
import torch

from dinocell.core.config import load
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.network import AveragedWeights, Thaw, build_model, freeze_forever, optimizer_groups
from dinocell.models import VisionTransformer, ViTConfig, load_model_folder, save_backbone
from dinocell.objectives import build_objective

RECIPES = Path(__file__).parents[2] / "finetune" / "configs"
SMALL = ["crop_size=32", "input_size=56", "overlap=8", "decoder.neck_width=16", "data.check_images=0", "device=cpu"]
SMALL += [
    "precision=float32",
    "data.workers=0",
    "validate.times=0",
    "validate.panels=0",
    "validate.tune_decoding=false",
]
TINY = {"arch": "vit_tiny", "depth": 2, "image_size": 56}


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, Path]:
    """What the ablations start from: DINOv2 as published (patch 14, RGB), and two stage-1 backbones (patch 8, gray)."""
    folder = tmp_path_factory.mktemp("starts")
    torch.manual_seed(0)
    dinov2 = VisionTransformer(ViTConfig(**TINY, patch_size=14, in_channels=3))
    torch.save(dinov2.state_dict(), folder / "dinov2_tiny14.pth")
    starts = {"dinov2": folder / "dinov2_tiny14.pth"}
    for name in ("adapted", "stage1_from_random"):
        starts[name] = folder / f"{name}.safetensors"
        save_backbone(starts[name], VisionTransformer(ViTConfig(**TINY, patch_size=8)), {})
    return starts


@pytest.mark.parametrize("start", ["random", "stage1_from_random", "dinov2", "adapted"])
def test_each_start_trains_from_the_weights_it_names(disks_dataset, starts, tmp_path, start):
    override = "backbone.weights=''" if start == "random" else f"backbone.weights={starts[start]}"
    shrink = ["backbone.arch=vit_tiny", "backbone.depth=2"] if start == "random" else []
    given = [override, *shrink, *SMALL, f"data.root={disks_dataset}", f"output_dir={tmp_path}", "train.steps=1"]
    config = load(FinetuneConfig, str(RECIPES / "vitb8_flows.yaml"), given)
    model = build_model(config, 3)
    assert (model.backbone.patch_size, model.backbone.in_channels) == (8, 1)
    known = None if start == "random" else build_start(starts[start])
    if known is not None:
        for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "norm.weight"):
            assert torch.equal(model.backbone.state_dict()[name], known[name]), name
    out = run(config).folder
    trained, card = load_model_folder(out / "model")
    assert card.training.initial_weights == ("random" if known is None else starts[start].name)
    moved = trained.backbone.state_dict()["blocks.0.attn.qkv.weight"]
    assert not torch.equal(moved, model.backbone.state_dict()["blocks.0.attn.qkv.weight"])  # the whole network learns


def build_start(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("override", "channels"),
    [("objective.kind=distance", 1), ("objective.kind=flows", 3), ("objective.flow_variant=leak_free", 3)],
)
def test_each_objective_is_one_override(disks_dataset, tmp_path, override, channels):
    given = [override, "backbone.arch=vit_tiny", "backbone.depth=1", *SMALL, f"data.root={disks_dataset}"]
    config = load(
        FinetuneConfig, str(RECIPES / "vitb8_flows.yaml"), [*given, f"output_dir={tmp_path}", "train.steps=1"]
    )
    model, card = load_model_folder(run(config).folder / "model")
    assert model.channels == channels == len(build_objective(config.objective).channels)
    assert card.objective.kind == config.objective.kind


@pytest.mark.parametrize("arch", ["vit_tiny", "vit_small"])
def test_semantic_recipe_keeps_whatever_dinobloom_backbone_it_gets_frozen(disks_dataset, tmp_path, arch):
    """DinoBloom S, B, L, G: patch 14, RGB, and frozen; the shapes in the file say which."""
    torch.manual_seed(1)
    backbone = VisionTransformer(ViTConfig(arch=arch, depth=2, patch_size=14, in_channels=3, image_size=56))
    torch.save(backbone.state_dict(), tmp_path / "DinoBloom.pth")
    small = [s for s in SMALL if not s.startswith(("crop_size", "input_size", "validate.tune"))]
    given = [*small, "crop_size=56", "input_size=56", f"backbone.weights={tmp_path / 'DinoBloom.pth'}", "train.steps=2"]
    roots = [f"data.root={disks_dataset}", f"output_dir={tmp_path / 'run'}"]
    out = run(load(FinetuneConfig, str(RECIPES / "dinobloom_bccd_semantic.yaml"), [*given, *roots])).folder
    model, card = load_model_folder(out / "model")
    assert model.backbone.patch_size == 14 and model.backbone.in_channels == 3
    after = model.backbone.state_dict()
    for name, value in backbone.state_dict().items():
        if name.startswith("blocks"):
            assert torch.equal(after[name], value), name
    assert card.validation.tuning is not None and card.validation.tuning["metric"] == "Dice"


def tiny(*overrides: str) -> FinetuneConfig:
    return load(FinetuneConfig, None, ["backbone.arch=vit_tiny", "backbone.depth=4", *SMALL, *overrides])


def test_layer_decay_slows_the_lower_blocks_and_not_the_decoder():
    config = tiny("backbone.layer_decay=0.5", "train.decoder_lr_multiplier=3")
    model = build_model(config, 3)
    rates = {}
    for group in optimizer_groups(model, config):
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr_multiplier"]
    blocks = [rates[id(block.attn.qkv.weight)] for block in model.backbone.blocks]
    assert blocks == pytest.approx([0.5**4, 0.5**3, 0.5**2, 0.5])
    assert all(rates[id(p)] == 3 for p in model.decoder.parameters())


def test_thaw_holds_the_backbone_until_its_share_of_the_training():
    config = tiny("backbone.train=unfreeze_after", "backbone.unfreeze_after=0.25")
    backbone = build_model(config, 3).backbone
    freeze_forever(backbone, config.backbone)
    thaw = Thaw(backbone, config.backbone)
    states = []
    for progress in (0.0, 0.1, 0.24, 0.25, 0.9):
        thaw.update(progress)
        states.append(backbone.blocks[0].attn.qkv.weight.requires_grad)
    assert states == [False, False, False, True, True]
    assert not backbone.mask_token.requires_grad


def test_averaged_weights_follow_the_closed_form():
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = AveragedWeights(layer, decay=0.9)
    expected = 0.0
    for n in range(200):
        with torch.no_grad():
            layer.weight.fill_(1.0)
        average.update(layer)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay)
    assert average.shadow["weight"].item() == pytest.approx(expected, abs=1e-6) and expected > 0.999
    with torch.no_grad():
        layer.weight.fill_(5.0)
    with average.applied(layer):
        assert layer.weight.item() == pytest.approx(expected, abs=1e-6)
    assert layer.weight.item() == 5.0
