"""Our stage 1 step against lightly-train's DINOv2 method, at equal work, in one run.

    python benchmarks/ssl_peer.py --peer VENV_WITH_LIGHTLY_TRAIN/bin/python [--threads 2] [--steps 4]

Both: ViT-S/14 on RGB from random weights, 8 images, 2 × 224 and 8 × 84 px, 8,192 prototypes on separate DINO and iBOT
heads, Sinkhorn-Knopp, bfloat16 autocast, no drop path, no loading processes, the same pictures. A step is everything:
loading, augmentation, student, teacher, losses, backward, clipping, AdamW, EMA. Prints the medians and their ratio in
CPU seconds and in wall time, and writes JSON. About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from ssl_step import WARMUP, write_crops

from dinocell.core import config as config_module
from dinocell.pretrain import PretrainConfig
from dinocell.pretrain.trainer import Trainer
from dinocell.training.progress import StepTimer

ROOT = Path(__file__).parents[1]
BATCH, GLOBAL, LOCAL, LOCAL_CROPS, PROTOTYPES = 8, 224, 84, 8, 8192


def main() -> None:
    """Runs both and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with lightly-train")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", default="ssl_peer.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "crops"
        write_crops(images, 2 * BATCH)
        ours = measure_ours(images, Path(folder) / "run", arguments.threads, arguments.steps)
        theirs = measure_peer(arguments.peer, images, arguments.threads, arguments.steps)
    report: dict[str, Any] = {"threads": arguments.threads, "peer": f"lightly-train {theirs['version']}"}
    for clock in ("cpu_seconds", "wall_seconds"):
        mine, other = statistics.median(ours[clock]), statistics.median(theirs[clock])
        report |= {clock: mine, f"peer_{clock}": other, f"{clock}_ratio": other / mine}
        print(f"{clock:13} a step: ours {mine:6.2f}   {report['peer']} {other:6.2f}   {other / mine:.2f}×")
    Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure_ours(images: Path, run: Path, threads: int, steps: int) -> dict[str, list[float]]:
    """CPU and wall seconds of each of our steps."""
    torch.set_num_threads(threads)
    config = config_module.load(
        PretrainConfig,
        ROOT / "ssl/configs/vitb8_microscopy.yaml",
        [
            f"data.root={images}",
            f"output_dir={run}",
            "data.workers=0",
            "model.arch=vit_small",
            "model.patch_size=14",
            "model.image_size=224",
            "model.in_channels=3",
            "model.registers=0",
            "model.drop_path=0",
            f"augment.global_size={GLOBAL}",
            f"augment.local_size={LOCAL}",
            f"augment.local_crops={LOCAL_CROPS}",
            f"dino_head.prototypes={PROTOTYPES}",
            f"ibot_head.prototypes={PROTOTYPES}",
            "dino_head.bottleneck=256",
            f"optim.batch_size={BATCH}",
            "precision=bfloat16",
            "tensorboard=false",
            "log_every=1000000",
            "monitor.every=0",
        ],
    )
    trainer = Trainer(config)
    batches, timer = trainer._batches(), StepTimer()
    spans: dict[str, list[float]] = {"cpu_seconds": [], "wall_seconds": []}
    for step in range(WARMUP + steps):
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.train_step(batches, timer)
        if step >= WARMUP:
            spans["cpu_seconds"].append(time.process_time() - cpu)
            spans["wall_seconds"].append(time.perf_counter() - wall)
    trainer.logger.close()
    return spans


def measure_peer(python: str, images: Path, threads: int, steps: int) -> dict[str, Any]:
    """lightly-train's seconds, in its own environment and process."""
    command = [python, "-W", "ignore", str(ROOT / "benchmarks/peers/ssl_lightly.py"), str(images)]
    command += ["--threads", str(threads), "--steps", str(steps), "--batch", str(BATCH)]
    command += ["--global-size", str(GLOBAL), "--local-size", str(LOCAL), "--local-crops", str(LOCAL_CROPS)]
    command += ["--prototypes", str(PROTOTYPES)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    if answer.returncode:
        sys.exit(f"lightly-train failed: {answer.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
