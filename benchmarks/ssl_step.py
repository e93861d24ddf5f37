"""Whole stage 1 optimizer steps: images/s, FLOP/s, and their share of this machine's matrix-product rate.

    OMP_NUM_THREADS=1 python benchmarks/ssl_step.py --config ssl/configs/vits8_cpu.yaml [key=value …] [--json FILE]

A real run on generated crops: loading, augmentation, student, teacher, losses, backward, clipping, AdamW and EMA. On a
CPU, steps and matrix products are both timed in CPU seconds of the training process, so that other programs do not
blur the share; on a GPU, both in wall time. Matrix products are timed before and after the steps, the faster counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from dinocell.core import config as config_module
from dinocell.pretrain import PretrainConfig
from dinocell.pretrain.cost import matmul_rate
from dinocell.pretrain.trainer import Trainer
from dinocell.training.progress import StepTimer

WARMUP = 2


def main() -> None:
    """Run the steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ssl/configs/vits8_cpu.yaml")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--images", type=int, default=16, help="generated 1,024 px crops")
    parser.add_argument("--json", default="")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_crops(Path(folder) / "crops", arguments.images)
        overrides = [f"data.root={folder}/crops", f"output_dir={folder}/run", "tensorboard=false", "log_every=1000000"]
        result = measure(
            config_module.load(PretrainConfig, arguments.config, [*overrides, *arguments.overrides]), arguments.steps
        )
    for name, value in result.items():
        print(f"{name:28} {value if isinstance(value, str) else format(value, '.4g')}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_crops(folder: Path, count: int) -> None:
    """Smooth random 8-bit gray PNGs of 1,024 px."""
    folder.mkdir(parents=True)
    for index in range(count):
        noise = np.random.default_rng(index).normal(size=(1024, 1024)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 3)
        image = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), image)


def measure(config: PretrainConfig, steps: int) -> dict[str, float | str]:
    """Time `steps` optimizer steps after `WARMUP` more, with the backbone trainable."""
    trainer = Trainer(config)
    trainer._set_backbone_trainable(True)
    clock = time.process_time if trainer.device.type == "cpu" else _synchronised_clock
    batches, timer = trainer._batches(), StepTimer()
    for _ in range(WARMUP):
        trainer.train_step(batches, timer)
    timer.lap()
    seconds = []
    for _ in range(steps):
        start = clock()
        trainer.train_step(batches, timer)
        seconds.append(clock() - start)
    wall, _, waited = timer.lap()
    rate = max(trainer.machine_rate, _products(trainer))
    step = float(np.median(seconds))
    achieved = trainer.image_flops * trainer.step_images / step
    trainer.logger.close()
    return {
        "device": str(trainer.device),
        "dtype": str(trainer.dtype),
        "model": f"{config.model.arch}/{config.model.patch_size}",
        "crops": f"2 × {config.augment.global_size}, {config.augment.local_crops} × {config.augment.local_size} px",
        "images a step": trainer.step_images,
        "TFLOP an image": trainer.image_flops / 1e12,
        "seconds a step": step,
        "images/s": trainer.step_images / step,
        "GFLOP/s": achieved / 1e9,
        "GFLOP/s in matrix products": rate / 1e9,
        "share": achieved / rate,
        "data wait (wall time)": waited,
        "wall seconds a step": wall / steps,
    }


def _products(trainer: Trainer) -> float:
    if trainer.device.type != "cpu":
        return matmul_rate(trainer.device, trainer.dtype)
    left, right = (torch.randn(2048, 2048, dtype=trainer.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - start)
    return 2 * 2048**3 / best


def _synchronised_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
