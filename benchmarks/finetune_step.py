"""Crops per second of one fine-tuning step, where its time goes, and the share of the matrix-product rate.

    python benchmarks/finetune_step.py [--config finetune/configs/vitt8_cpu.yaml] [key=value …] [--out FILE.json]

Crops are random numbers with made-up cells, so no data is needed; cutting them is timed as `data`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis

from dinocell.core.config import load
from dinocell.core.device import autocast, choose_device, choose_dtype
from dinocell.core.errors import run_main
from dinocell.finetune import FinetuneConfig
from dinocell.finetune.data.crops import CropDataset
from dinocell.finetune.data.image_store import ImageStore, PreparedImage
from dinocell.finetune.data.loader import collate
from dinocell.finetune.data.sampler import SampleOrder, sample_rng
from dinocell.finetune.network import build_model, optimizer_groups
from dinocell.labels.cells import cell_boxes
from dinocell.objectives import build_objective
from dinocell.predict.placement import Placement
from dinocell.training.optim import adamw, set_schedule

REPEATS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="finetune/configs/vitt8_cpu.yaml")
    parser.add_argument("--out", help="also write the numbers as JSON")
    given, overrides = parser.parse_known_args()
    result = measure(load(FinetuneConfig, given.config, overrides))
    for name, value in result.items():
        print(f"{name:34} {value if isinstance(value, str) else f'{value:.4g}'}")
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(config: FinetuneConfig) -> dict[str, Any]:
    """Seconds of each part of a step (best of three) and the rates that follow."""
    device, _ = choose_device(config.device)
    dtype, _ = choose_dtype(config.precision, device)
    objective = build_objective(config.objective)
    model = build_model(config, len(objective.channels)).to(device)
    optimizer = adamw(optimizer_groups(model, config))
    set_schedule(optimizer, config.train.lr, config.train.weight_decay)
    dataset = CropDataset(ImageStore([], config, print), SampleOrder([0], "proportional", 0), objective, config)
    image = made_up_image(max(1024, config.crop_size))
    batch_size = config.train.batch_size // config.train.accumulate
    parts: list[dict[str, float]] = []
    for repeat in range(REPEATS + 1):
        clock = Clock(device)
        samples = [dataset.cut(image, sample_rng(repeat, n)) for n in range(batch_size)]
        clock.lap("data")
        batch = collate(samples).to(device)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            prediction = model(batch.image)
        clock.lap("forward")
        loss = objective.loss(prediction, batch.target, batch.weight)
        clock.lap("loss")
        torch.autograd.backward(loss)
        clock.lap("backward")
        optimizer.step()
        clock.lap("optimizer")
        parts.append(clock.seconds)
    best = {name: min(p[name] for p in parts[1:]) for name in parts[0]}
    step = sum(seconds for name, seconds in best.items() if name != "data")  # crops are cut by other threads meanwhile
    flops = 3 * crop_flops(model, config, device)  # backward costs twice the forward
    peak = matrix_rate(device, dtype)
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": float(torch.get_num_threads()),
        "dtype": str(dtype).removeprefix("torch."),
        "crops per step": float(batch_size),
        **{f"{name} (s per step)": seconds for name, seconds in best.items()},
        "crops per second": batch_size / step,
        "TFLOP per crop (forward+backward)": flops / 1e12,
        "matrix-product rate (TFLOP/s)": peak / 1e12,
        "share of the matrix-product rate": flops * batch_size / step / peak,
    }


class Clock:
    """Seconds between laps; waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last lap."""
        now = self._now()
        self.seconds[name] = now - self._last
        self._last = now


def made_up_image(size: int) -> PreparedImage:
    """Noise with square cells of 24 px, some touching."""
    labels = np.zeros((size, size), np.int32)
    for number, (y, x) in enumerate(np.mgrid[4 : size - 28 : 30, 4 : size - 28 : 24].reshape(2, -1).T, 1):
        labels[y : y + 24, x : x + 24] = number
    noise = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    return PreparedImage(
        image=noise,
        labels=labels,
        ignore=None,
        boxes=cell_boxes(labels),
        truth=labels,
        unlabelled_weight=1.0,
        placement=Placement.of((size, size), window=size),
    )


def crop_flops(model: torch.nn.Module, config: FinetuneConfig, device: torch.device) -> float:
    """Floating-point operations of one forward of one crop: fvcore's matrix products and attention added by hand."""
    backbone: Any = model.backbone
    tokens = (config.network_size // backbone.patch_size) ** 2 + 1 + backbone.registers
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 1, config.crop_size, config.crop_size, device=device))
    counted = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    model.train()
    attention = 0 if "scaled_dot_product_attention" in counted else 2 * tokens**2 * backbone.embed_dim * backbone.depth
    return 2.0 * float(sum(counted.values()) + attention)  # fvcore counts multiply-adds


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Measured FLOP/s of a large square product."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        clock = Clock(device)
        left @ right
        clock.lap("product")
        seconds.append(clock.seconds["product"])
    return 2.0 * side**3 / min(seconds[1:])


if __name__ == "__main__":
    run_main(main)
