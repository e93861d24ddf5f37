"""Whole-image segmentation against the paper authors' procedure, with the same weights, window for window.

    python benchmarks/segment.py [--model FOLDER] [--arch vit_small --input-size 512] [--size 520x704] [--images 2]
        [--device cpu] [--repeats 2] [--json FILE]
    python benchmarks/segment.py --memory 8192,16384 [--folder SCRATCH]

Theirs: windows every 256 px, clamped to the image and not made unique (9 forwards on 520 x 704, of which 4 are
different), one at a time, float32, plain averaging; then the same decoder as ours, so that only the procedure
differs. Ours: `Segmenter` (unique windows, taper, bfloat16 where the CPU or GPU has it). Both read a TIFF and write
labels. Without --model the weights are random: the network runs for its cost and its maps are then replaced by the
exact targets of the generated cells, so that decoding meets a realistic number of cells. Prints seconds an image by
part and the agreement of the labels (MMA; with replaced maps it checks only tiling and stitching).
ViT-S at 512 needs some minutes on two idle CPU cores.

--memory prints the peak of resident memory (without file pages, which the system takes back) of `segment_large` on
images of growing side with a network that costs nothing; each runs in a process of its own.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell.data.synthetic import make_image
from dinocell.inference import Segmenter, SegmentOptions, load_model
from dinocell.inference.outputs import save_result
from dinocell.inference.planes import InputPlane, iter_planes, open_image
from dinocell.inference.tiling import evaluating
from dinocell.metrics import maximum_matching_accuracy
from dinocell.models import DecoderConfig, SegmentationModel, VisionTransformer, ViTConfig
from dinocell.objectives import build_objective

THEIR_STRIDE = 256
PARTS = ("read", "prepare", "network", "decode", "write")


class Replaced(nn.Module):
    """Runs the network for its cost and answers with the maps of `targets` at the windows asked for."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model
        self.targets = torch.zeros(0)
        self.corners: list[tuple[int, int]] = []
        self.forwards = 0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        maps = self.model(z)
        self.forwards += len(z)
        if not self.corners:
            return maps
        height, width = z.shape[-2:]
        taken, self.corners = self.corners[: len(z)], self.corners[len(z) :]
        return torch.stack([self.targets[:, y : y + height, x : x + width] for y, x in taken]).to(z.device)


def main() -> None:
    """Parse the command line and print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--input-size", type=int, default=512)
    parser.add_argument("--size", default="520x704")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", default="")
    parser.add_argument("--memory", default="")
    parser.add_argument("--memory-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_of_large(arguments.memory_of, Path(arguments.folder)))
        return
    result = memory(arguments) if arguments.memory else compare(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds an image by part, ours and theirs, and how far the labels agree."""
    height, width = map(int, arguments.size.split("x"))
    ours = open_segmenter(arguments, "auto")
    theirs = open_segmenter(arguments, "float32")
    print(ours.describe())
    result: dict[str, Any] = {"device": ours.describe(), "size": [height, width], "images": arguments.images}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index in range(arguments.images):
            image, labels = make_image(index, max(height, width), "phase")
            files.append((Path(folder) / f"{index}.tif", labels[:height, :width]))
            tifffile.imwrite(files[-1][0], image[:height, :width])
        runs = {"theirs": lambda file, truth: as_authors(theirs, file, truth), "ours": lambda f, t: as_here(ours, f, t)}
        found = {name: best_of(run, files, arguments.repeats, Path(folder)) for name, run in runs.items()}
    for name, (seconds, _, forwards) in found.items():
        total = sum(seconds.values())
        parts = "  ".join(f"{part} {seconds[part]:.3f}" for part in PARTS)
        outside = 1 - (seconds["network"] / total)
        print(f"{name:7s} {total:8.3f} s/image  {parts}  forwards {forwards:g}  outside the network {outside:.1%}")
        result[name] = seconds | {"total": total, "forwards": forwards}
    result["speedup"] = result["theirs"]["total"] / result["ours"]["total"]
    pairs = zip(found["theirs"][1], found["ours"][1], strict=True)
    result["mma"] = float(np.mean([maximum_matching_accuracy(a, b) for a, b in pairs]))
    print(f"ours is {result['speedup']:.1f} times as fast; MMA of the two labels {result['mma']:.4f}")
    return result


def open_segmenter(arguments: argparse.Namespace, precision: Any) -> Segmenter:
    """The model of --model, or random weights of --arch whose maps will be replaced."""
    if arguments.model:
        return load_model(arguments.model, arguments.device, precision=precision)
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch=arguments.arch, patch_size=8, image_size=arguments.input_size))
    model = SegmentationModel(backbone, DecoderConfig(), 3, 512, arguments.input_size)
    meta = {"crop_size": 512, "objective": {"kind": "flows"}}
    return Segmenter(Replaced(model), meta, device=arguments.device, precision=precision)


Timed = tuple[dict[str, float], NDArray[Any], int, Callable[[Path], None]]


def best_of(
    run: Callable[[Path, NDArray[Any]], Timed], files: list[Any], repeats: int, out: Path
) -> tuple[dict[str, float], list[NDArray[Any]], float]:
    """Mean over images of the fastest repeat, by part; the labels; forwards an image."""
    run(*files[0])  # compiles and warms up
    means = dict.fromkeys(PARTS, 0.0)
    labels, forwards = [], 0
    for file, truth in files:
        best: dict[str, float] = {}
        for _ in range(repeats):
            seconds, found, count, write = run(file, truth)
            _, seconds["write"] = clock(lambda write=write: write(out / "results"))
            best = seconds if not best or sum(seconds.values()) < sum(best.values()) else best
        labels.append(found)
        forwards += count
        means = {part: means[part] + best[part] / len(files) for part in PARTS}
    return means, labels, forwards / len(files)


def clock(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def arm(segmenter: Segmenter, truth: NDArray[Any], corners: list[tuple[int, int]]) -> None:
    """Let the replaced network answer with the truth's maps, at these windows in turn."""
    if isinstance(segmenter.model, Replaced):
        segmenter.model.targets = torch.from_numpy(build_objective(segmenter.objective).targets(truth))
        segmenter.model.corners = list(corners)
        segmenter.model.forwards = 0


def as_here(segmenter: Segmenter, file: Path, truth: NDArray[Any]) -> Timed:
    """One image as `dinocell segment` does it, part after part."""
    from dinocell.inference.tiling import windows

    options, seconds = SegmentOptions(), {}
    tiles = windows((truth.shape[0], truth.shape[1]), segmenter.window, segmenter.overlap)
    arm(segmenter, truth, [(at.y, at.x) for at in tiles])
    plane, seconds["read"] = clock(lambda: next(iter_planes(open_image(file))))
    job, seconds["prepare"] = clock(lambda: segmenter.prepare(plane, options))
    [(_, maps)], seconds["network"] = clock(lambda: list(segmenter.predict([job])))
    result, seconds["decode"] = clock(lambda: segmenter.finish(job, maps, options))
    return seconds, result.labels, len(tiles), lambda out: save_result(result, out, file.stem, ("labels",)) and None


def as_authors(segmenter: Segmenter, file: Path, truth: NDArray[Any]) -> Timed:
    """One image as the authors' code does it: every clamped window, one by one, float32, averaged."""
    options, seconds = SegmentOptions(), {}
    window = segmenter.window
    corners = [
        (min(y, truth.shape[0] - window), min(x, truth.shape[1] - window))
        for y in range(0, truth.shape[0], THEIR_STRIDE)
        for x in range(0, truth.shape[1], THEIR_STRIDE)
    ]
    arm(segmenter, truth, corners)
    plane, seconds["read"] = clock(lambda: next(iter_planes(open_image(file))))
    job, seconds["prepare"] = clock(lambda: segmenter.prepare(plane, options))
    z = torch.from_numpy(job.z).to(segmenter.device)

    def network() -> NDArray[np.float32]:
        total, weight = None, np.zeros(truth.shape, np.float32)
        with evaluating(segmenter.model):
            for y, x in corners:
                maps = segmenter.model(z[None, None, y : y + window, x : x + window])[0].cpu().numpy()
                total = np.zeros((len(maps), *truth.shape), np.float32) if total is None else total
                total[:, y : y + window, x : x + window] += maps
                weight[y : y + window, x : x + window] += 1
        assert total is not None
        return np.asarray(total / weight, np.float32)

    maps, seconds["network"] = clock(network)
    result, seconds["decode"] = clock(lambda: segmenter.finish(job, maps, options))
    return seconds, result.labels, len(corners), lambda out: save_result(result, out, file.stem, ("labels",)) and None


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory by side of the image."""
    result = {}
    for side in map(int, arguments.memory.split(",")):
        command = [sys.executable, __file__, "--memory-of", str(side), "--folder", arguments.folder]
        start = time.perf_counter()
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[str(side)] = int(output.split()[-1])
        print(f"{side} x {side}: {result[str(side)]} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    return result


class Waves(nn.Module):
    """Costs nothing: cells on a fixed lattice of each window, whatever the picture."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        side = torch.arange(z.shape[-1])
        wave = torch.cos(2 * torch.pi * side / 32)
        return (8 * (wave[:, None] + wave[None, :]) - 8).expand(len(z), 1, -1, -1)


def peak_of_large(side: int, folder: Path) -> int:
    """Peak MiB of anonymous resident memory while a memory-mapped image of side² pixels is segmented and written."""
    with tempfile.TemporaryFile(dir=folder) as file:
        image = np.memmap(file, np.uint8, "w+", shape=(side, side))
    for top in range(0, side, 1024):
        image[top : top + 1024] = np.random.default_rng(top).integers(0, 255, (min(1024, side - top), side))
    meta = {"crop_size": 512, "objective": {"kind": "semantic"}}
    segmenter = Segmenter(Waves(), meta, device="cpu", precision="float32")
    plane = InputPlane(name="", gray=image, display=image, channels={"gray": image})
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            status = Path(f"/proc/{os.getpid()}/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]) // 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = segmenter.segment_large(plane, SegmentOptions(), folder)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        save_result(result, Path(out), "large", ("labels", "csv"))
    done.set()
    watcher.join()
    return peak[0]


if __name__ == "__main__":
    main()
