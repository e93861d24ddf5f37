"""Peak memory and seconds of `dinocell segment` on images of growing side: tiled TIFF in, label TIFF and CSV out.

    python benchmarks/segment_memory.py [--sides 8000,20000,40000] [--images FOLDER] [--folder SCRATCH] [--json FILE]

The image is a mosaic of the real images of --images (default: generated fluorescence cells), mirrored at every edge so
that no cut is seen, written tile by tile as compressed TIFF. The network is a depth-2 ViT-Ti at 32 px that runs once a
window, and its answer is replaced by flows uphill in the blurred picture, so that as many cells are found as there are
bright spots: what is measured is everything else. Each side runs in a process of its own. `peak` is the largest
resident set (VmHWM, with the file pages that the system had not yet taken back), `anonymous` the part of it that is
not backed by files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell.datasets.synthetic.sample import make_image
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.contrast import to_uint8
from dinocell.images.listing import list_images
from dinocell.images.read import read_image
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import Segmenter, run

TILE = 512


class Uphill(nn.Module):
    """Runs a tiny network, and answers with flows towards the bright spots of the picture."""

    def __init__(self) -> None:
        super().__init__()
        backbone = VisionTransformer(ViTConfig(arch="vit_tiny", depth=2, patch_size=8, image_size=32))
        self.model = SegmentationModel(backbone, DecoderConfig(kind="linear"), 3, 512, 32)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[B, 1, 512, 512] → flows and probability [B, 3, 512, 512]."""
        nothing = 0 * self.model(z)[:, :1]
        for _ in range(3):
            z = nn.functional.avg_pool2d(z, 9, 1, 4, count_include_pad=False)
        dy, dx = torch.gradient(z[:, 0], dim=(1, 2))
        length = torch.hypot(dy, dx).clamp_min(1e-6)
        return nothing + torch.stack([dy / length, dx / length, torch.sigmoid(6 * z[:, 0])], dim=1)


def main() -> None:
    """Measure every side in a process of its own and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="8000,20000,40000")
    parser.add_argument("--images", default="", help="folder or pattern of real images")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--json", default="")
    parser.add_argument("--of", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of:
        print(json.dumps(measure(Path(arguments.of))))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for side in map(int, arguments.sides.split(",")):
            file = Path(folder) / f"{side}.tif"
            write_mosaic(file, side, arguments.images)
            command = [sys.executable, __file__, "--of", str(file)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[str(side)] = json.loads(output.splitlines()[-1])
            file.unlink()
            print(f"{side} x {side}: " + ", ".join(f"{k} {v}" for k, v in result[str(side)].items()), flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_mosaic(file: Path, side: int, images: str) -> None:
    """A tiled zlib TIFF of side² pixels, uint8, made of the images one tile at a time."""
    if images:
        sources = [to_uint8(to_gray(read_image(path))) for path in list_images([images])]
    else:
        sources = [to_uint8(make_image(seed, 1024, "fluorescence")[0]) for seed in range(4)]

    def part(y: int, x: int) -> NDArray[np.uint8]:
        source = sources[(y // TILE // 2 + x // TILE // 2) % len(sources)]
        rows, columns = (fold(np.arange(start, start + TILE), n) for start, n in zip((y, x), source.shape, strict=True))
        return source[np.ix_(rows, columns)]

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for y in range(0, side, TILE):
            for x in range(0, side, TILE):
                yield part(y, x)

    layout: dict[str, Any] = {"shape": (side, side), "dtype": np.uint8, "tile": (TILE, TILE), "bigtiff": True}
    tifffile.imwrite(file, tiles(), **layout, compression="zlib", compressionargs={"level": 1})


def fold(position: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Positions mirrored at 0 and `length`, again and again."""
    position = position % (2 * length)
    return np.where(position < length, position, 2 * length - 1 - position)


def measure(file: Path) -> dict[str, Any]:
    """Segment the file in this process; peak MiB, seconds and cells."""
    torch.manual_seed(0)
    card = ModelCard(crop_size=512, objective=ObjectiveConfig(flow_error=0.0))
    segmenter = Segmenter(Uphill(), card, device="cpu", precision="float32")
    segmenter.large_pixels = 0  # 8,000² would still fit into memory
    anonymous, peak, done = [0], [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = Path(f"/proc/{os.getpid()}/status").read_text()
            for name, most in (("RssAnon:", anonymous), ("VmHWM:", peak)):
                most[0] = max(most[0], int(status.split(name)[1].split()[0]) // 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=file.parent) as out:
        summary = run([file], out, segmenter, save=("labels", "csv"))
        written = sum(path.stat().st_size for path in Path(out).iterdir()) // 2**20
    seconds, used = time.perf_counter() - start, time.process_time() - used
    done.set()
    watcher.join()
    assert not summary.failed, summary.failed
    return {
        "peak MiB": peak[0],
        "anonymous MiB": anonymous[0],
        "seconds": round(seconds, 1),
        "cpu seconds": round(used, 1),
        "cells": summary.cells,
        "written MiB": written,
    }


if __name__ == "__main__":
    main()
