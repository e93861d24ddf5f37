"""Seconds of lightly-train's DINOv2 steps on a folder of images; benchmarks/ssl_peer.py runs it in its own venv.

    python benchmarks/peers/ssl_lightly.py IMAGES --threads 2 --steps 4 --batch 8 --global-size 224 --local-size 84 \
        --local-crops 8 --prototypes 8192

Prints one JSON line: CPU and wall seconds of each step after the first two (loading, forward, backward, optimizer,
EMA), and the version.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time

import torch

# torchvision has no build for every CPU torch; lightly-train needs it for image transforms, not for its operators.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import lightly_train  # noqa: E402
from lightly_train._methods.dinov2.dinov2 import DINOv2  # noqa: E402

WARMUP = 2


def main() -> None:
    """Trains a few steps through the public function and notes when each begins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--global-size", type=int, default=224)
    parser.add_argument("--local-size", type=int, default=84)
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=8192)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    marks: list[tuple[float, float]] = []
    step = DINOv2.training_step

    def noted(self: DINOv2, *args: object, **kwargs: object) -> object:
        marks.append((time.process_time(), time.perf_counter()))
        return step(self, *args, **kwargs)

    DINOv2.training_step = noted
    with tempfile.TemporaryDirectory() as folder:
        lightly_train.pretrain(
            out=f"{folder}/run",
            data=arguments.images,
            model="dinov2/vits14-notpretrained",
            method="dinov2",
            epochs=1000,
            trainer_args={"max_steps": WARMUP + arguments.steps + 1},
            batch_size=arguments.batch,
            num_workers=0,
            model_args={"drop_path_rate": 0.0},
            accelerator="cpu",
            devices=1,
            precision="bf16-mixed",
            method_args={
                "output_dim": arguments.prototypes,
                "ibot_separate_head": True,
                "center_method": "sinkhorn_knopp",
                "student_freeze_last_layer_steps": 0,
            },
            transform_args={
                "image_size": (arguments.global_size, arguments.global_size),
                "local_view": {
                    "num_views": arguments.local_crops,
                    "view_size": (arguments.local_size, arguments.local_size),
                },
            },
        )
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks[WARMUP:], marks[WARMUP + 1 :], strict=False)]
    print(
        json.dumps(
            {
                "cpu_seconds": [cpu for cpu, _ in spans],
                "wall_seconds": [wall for _, wall in spans],
                "version": importlib.metadata.version("lightly_train"),
            }
        )
    )


if __name__ == "__main__":
    main()
