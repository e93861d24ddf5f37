"""What a stage 1 run needs: memory a GPU and hours, derived from the network, not measured on GPUs.

    python benchmarks/sizing.py [--batch 16] [--json FILE]

Operations are counted by the library (`dinocell.pretrain.cost`). Memory is counted on fake tensors: 20 bytes a
parameter (weights, gradients and two AdamW moments of the student, weights of the teacher, all float32) plus every
tensor that the forward pass keeps for the backward pass under bfloat16 autocast, each storage once. Not counted: the
CUDA context, workspaces, fragmentation and short-lived buffers; leave 10 % room. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dinocell.models import VisionTransformer, ViTConfig
from dinocell.pretrain import PretrainConfig
from dinocell.pretrain.config import AugmentConfig, DataConfig, OptimConfig
from dinocell.pretrain.cost import image_flops
from dinocell.pretrain.data.crops import Batch
from dinocell.pretrain.method.student_teacher import StudentTeacher

ARCHITECTURES = ("vit_small", "vit_base", "vit_large")
CROPS = ((512, 208), (256, 104), (128, 64))
BYTES_A_PARAMETER = 20
PAPER_IMAGES = 100 * 1000 * 16 * 8  # epochs × steps × batch × GPUs (paper §3.3)
PAPER_SECONDS = 100 * 3600 * 8  # GPU seconds on L40S, as published
PEAK = {"L40S": 362e12, "A100": 312e12, "H100": 989e12}  # dense bfloat16, vendors' data sheets


def main() -> None:
    """Count, print the table as Markdown, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images a GPU")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    rows = [size(arch, *crops, given.batch) for arch in ARCHITECTURES for crops in CROPS]
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    paper = size("vit_base", 512, 208, 16)["TFLOP an image"] * 1e12 * PAPER_IMAGES / PAPER_SECONDS
    print(f"\npaper's run: {paper / 1e12:.1f} TFLOP/s a GPU = {paper / PEAK['L40S']:.1%} of an L40S's peak")
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def size(arch: str, large: int, small: int, batch: int) -> dict[str, Any]:
    """One row: a backbone with patch 8 at two crop sizes."""
    config = recipe(arch, large, small, batch)
    with torch.device("meta"), mock.patch("torch.nn.init.trunc_normal_"):  # shapes alone
        model = StudentTeacher(VisionTransformer(config.model), config)
    work = image_flops(config, model.student["backbone"])  # type: ignore[arg-type]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        parameters = sum(p.numel() for p in model.student.parameters())
        fixed = BYTES_A_PARAMETER * parameters / 1e9
        activations = kept(model, config, batch) / 1e9
        model.student["backbone"].activation_checkpointing = True  # type: ignore[assignment]
        # Recomputing keeps every block's float32 input, which no hook sees, and meanwhile one block's own tensors.
        depth = len(model.student["backbone"].blocks)  # type: ignore[arg-type]
        inputs = 4e-9 * depth * tokens(config) * model.student["backbone"].embed_dim  # type: ignore[operator]
        outside = kept(model, config, batch) / 1e9
        recomputed = outside + inputs + (activations - outside) / depth
    row: dict[str, Any] = {
        "backbone": f"{arch}/8",
        "crops": f"{large} / {small}",
        "M parameters": round(parameters / 1e6),
        "TFLOP an image": work / 1e12,
        "GB fixed": fixed,
        f"GB with {batch} images": fixed + activations,
        "GB recomputing": fixed + recomputed,
    }
    for name, peak in PEAK.items():
        row[f"images/s, {name} at 30 %"] = 0.3 * peak / work
    row["h, paper's images, 8 H100"] = PAPER_IMAGES * work / (8 * 0.3 * PEAK["H100"]) / 3600
    return row


def recipe(arch: str, large: int, small: int, batch: int) -> PretrainConfig:
    """The paper's recipe with another backbone, crops and batch."""
    return PretrainConfig(
        output_dir="none",
        model=ViTConfig(arch=arch, patch_size=8, image_size=large, in_channels=1, registers=4, drop_path=0.2),
        data=DataConfig(root=("none",)),
        augment=AugmentConfig(global_size=large, local_size=small),
        optim=OptimConfig(batch_size=batch),
        device="cpu",
    )


def tokens(config: PretrainConfig) -> int:
    """Tokens of all crops of a batch."""
    patch, extra = config.model.patch_size, 1 + config.model.registers
    large, small = ((side // patch) ** 2 + extra for side in (config.augment.global_size, config.augment.local_size))
    return config.optim.batch_size * (2 * large + config.augment.local_crops * small)


def kept(model: StudentTeacher, config: PretrainConfig, images: int) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters not counted."""
    side, patch = config.augment.global_size, config.model.patch_size
    patches = (side // patch) ** 2
    masked = round(patches * images * sum(config.mask.ratio) / 2)  # half of the 2 × images global crops
    masks = torch.zeros(2 * images, patches, dtype=torch.bool)
    batch = Batch(
        global_crops=torch.zeros(2 * images, 1, side, side, dtype=torch.uint8),
        local_crops=torch.zeros(8 * images, 1, config.augment.local_size, config.augment.local_size, dtype=torch.uint8),
        masks=masks,
        mask_indices=torch.zeros(masked, dtype=torch.long),
        patch_weights=torch.zeros(masked),
        paths=[""] * images,
        unreadable={},
        failed=False,
    )
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, tuple[int, Any]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    watching = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with watching, torch.autocast("cpu", torch.bfloat16):
        model(batch, 0.05)
    return sum(size for size, _ in seen.values())


if __name__ == "__main__":
    main()
