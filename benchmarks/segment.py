"""Whole-image segmentation against the paper authors' procedure, with the same weights, window for window.

    python benchmarks/segment.py [--model FOLDER] [--inputs FOLDER] [--arch vit_small --input-size 512] [--size 520x704]
        [--images 2] [--device cpu] [--repeats 2] [--peer PYTHON] [--json FILE]

Theirs: windows every half window (256 px), clamped to the image, duplicates and all (9 forwards on 520 x 704, of which
4 differ), one at a time, float32, plain averaging, and Cellpose's decoding (--peer: the python of an environment with
cellpose; without it our decoder stands in, which is faster). Ours: `Segmenter` (unique windows, taper, bfloat16 where
the CPU or GPU has it) and our decoder. Both read a TIFF and write labels; each runs in a process of its own.

Without --model the weights are random: the network runs for its cost and its maps are then replaced by the exact
targets of the generated cells, so that decoding meets a realistic number of cells. --inputs takes real images instead
(of at least --size; their middle is cut out), which needs --model. Prints seconds an image by part, images/s, peak
memory and the agreement of the labels: their mean MMA, which with replaced maps checks tiling, stitching and decoding.
ViT-S at 512 needs some minutes on two idle CPU cores. benchmarks/segment_memory.py measures large images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell.datasets.synthetic.sample import make_image
from dinocell.images.gray.channels import to_gray
from dinocell.images.listing import list_images
from dinocell.images.planes import iter_planes, loaded, open_image
from dinocell.images.read import read_image
from dinocell.metrics import maximum_matching_accuracy
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig
from dinocell.objectives import build_objective
from dinocell.predict.runner import evaluating
from dinocell.segmentation import Segmenter, SegmentOptions, load_model
from dinocell.segmentation.outputs.save import check_formats, save_result

PEER = Path(__file__).parent / "peers" / "objectives_cellpose.py"
PROCEDURES = ("theirs", "ours")
PARTS = ("read", "prepare", "network", "decode", "write")
LABELS = check_formats("labels")


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
    """Parse the command line, run both procedures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--inputs", default="", help="folder or pattern of real images; needs --model")
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--input-size", type=int, default=512)
    parser.add_argument("--size", default="520x704")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peer", default="", help="python of an environment with cellpose")
    parser.add_argument("--json", default="")
    parser.add_argument("--only", default="", choices=("", *PROCEDURES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inputs and not arguments.model:
        parser.error("--inputs needs --model: random weights find nothing")
    if arguments.only:
        measure(arguments)
        return
    result = compare(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds an image by part, ours and theirs, and how far the labels agree."""
    result: dict[str, Any] = {"size": arguments.size, "images": arguments.images}
    labels = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PROCEDURES:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", folder]
            subprocess.run(command, check=True)
            result[name] = json.loads((Path(folder) / f"{name}.json").read_text("utf-8"))
            with np.load(Path(folder) / f"{name}.npz") as found:
                labels[name] = [found[key] for key in found.files]
    for name in PROCEDURES:
        row = result[name]
        parts = "  ".join(f"{part} {row['seconds'][part]:.3f}" for part in PARTS)
        print(
            f"{name:7s} {row['total']:8.3f} s/image ({1 / row['total']:.2f} images/s)  {parts}  forwards "
            f"{row['forwards']:g}  decoding and files {row['outside']:.1%}  peak {row['peak_mib']} MiB  {row['device']}"
        )
    result["speedup"] = result["theirs"]["total"] / result["ours"]["total"]
    pairs = zip(labels["theirs"], labels["ours"], strict=True)
    result["mma"] = float(np.mean([maximum_matching_accuracy(a, b) for a, b in pairs]))
    print(f"ours is {result['speedup']:.1f} times as fast; MMA of the two labels {result['mma']:.4f}")
    return result


def measure(arguments: argparse.Namespace) -> None:
    """One procedure in this process: its figures and labels as files."""
    name, out = arguments.only, Path(arguments.folder)
    segmenter = open_segmenter(arguments, "float32" if name == "theirs" else "auto")
    files = pictures(arguments, out)
    run: Callable[[Path, NDArray[Any]], Timed] = (
        partial(as_authors, segmenter, arguments.peer) if name == "theirs" else partial(as_here, segmenter)
    )
    seconds, labels, forwards = best_of(run, files, arguments.repeats, out)
    total = sum(seconds.values())
    row = {
        "device": segmenter.describe(),
        "seconds": seconds,
        "total": total,
        "forwards": forwards,
        "outside": (seconds["read"] + seconds["decode"] + seconds["write"]) / total,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    (out / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")
    np.savez(out / f"{name}.npz", *labels)


def pictures(arguments: argparse.Namespace, folder: Path) -> list[tuple[Path, NDArray[Any]]]:
    """TIFF files of the size asked for, and the labels of the generated ones (zeros for real images)."""
    height, width = map(int, arguments.size.split("x"))
    made: list[tuple[NDArray[Any], NDArray[Any]]] = []
    if arguments.inputs:
        for path in list_images([arguments.inputs])[: arguments.images]:
            gray = to_gray(read_image(path))
            y, x = (gray.shape[0] - height) // 2, (gray.shape[1] - width) // 2
            if min(y, x) < 0:
                raise SystemExit(f"{path}: {gray.shape[0]} x {gray.shape[1]} px, smaller than --size {arguments.size}")
            made.append((gray[y : y + height, x : x + width], np.zeros((height, width), np.int32)))
    else:
        for index in range(arguments.images):
            image, labels = make_image(index, max(height, width), "phase")
            made.append((image[:height, :width], labels[:height, :width]))
    files = []
    for index, (image, labels) in enumerate(made):
        files.append((folder / f"{index}.tif", labels))
        tifffile.imwrite(files[-1][0], image)
    return files


def open_segmenter(arguments: argparse.Namespace, precision: Any) -> Segmenter:
    """The model of --model, or random weights of --arch whose maps will be replaced."""
    if arguments.model:
        return load_model(arguments.model, arguments.device, precision=precision)
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch=arguments.arch, patch_size=8, image_size=arguments.input_size))
    model = SegmentationModel(backbone, DecoderConfig(), 3, 512, arguments.input_size)
    return Segmenter(Replaced(model), ModelCard(crop_size=512), device=arguments.device, precision=precision)


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
    options, seconds = SegmentOptions(diameter="own"), {}
    tiles = segmenter.place((truth.shape[0], truth.shape[1])).windows(segmenter.runner.overlap)
    arm(segmenter, truth, [(at.y, at.x) for at in tiles])
    plane, seconds["read"] = clock(lambda: loaded(next(iter_planes(open_image(file)))))
    prepared, seconds["prepare"] = clock(lambda: segmenter.prepare(plane, options))
    [(job, maps)], seconds["network"] = clock(lambda: list(segmenter.predict([prepared])))
    result, seconds["decode"] = clock(lambda: segmenter.finish(job, maps, options))
    return seconds, result.labels, len(tiles), lambda out: save_result(result, out, file.stem, LABELS) and None


def as_authors(segmenter: Segmenter, peer: str, file: Path, truth: NDArray[Any]) -> Timed:
    """One image as the authors' code does it: every clamped window, one by one, float32, averaged."""
    options, seconds = SegmentOptions(diameter="own"), {}
    window = segmenter.runner.window
    corners = [
        (min(y, truth.shape[0] - window), min(x, truth.shape[1] - window))
        for y in range(0, truth.shape[0], window // 2)
        for x in range(0, truth.shape[1], window // 2)
    ]
    arm(segmenter, truth, corners)
    plane, seconds["read"] = clock(lambda: loaded(next(iter_planes(open_image(file)))))
    (job, given), seconds["prepare"] = clock(lambda: segmenter.prepare(plane, options))
    z = torch.from_numpy(given).to(segmenter.runner.device)

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
    if peer:
        found, seconds["decode"] = decode_by_cellpose(segmenter, peer, maps)
        result = dataclasses.replace(result, labels=found)
    return seconds, result.labels, len(corners), lambda out: save_result(result, out, file.stem, LABELS) and None


def decode_by_cellpose(segmenter: Segmenter, peer: str, maps: NDArray[np.float32]) -> tuple[NDArray[Any], float]:
    """Labels and seconds of Cellpose's own decoding, without the start of its process."""
    objective = build_objective(segmenter.objective)
    flows, probability = objective.vectors(maps), objective.cell_probability(maps)
    assert flows is not None, "Cellpose decodes flows"
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        shifted = probability + np.float32(0.5 - segmenter.objective.threshold)  # Cellpose's script compares with 0.5
        labels = np.zeros(probability.shape, np.int32)
        labels[:2, :2] = 1  # the script also times the targets of `labels`
        np.savez(given, labels=labels, flows=flows, probability=shifted)
        command = [peer, "-W", "ignore", str(PEER), str(given), str(result), "--threads", str(torch.get_num_threads())]
        command += ["--flow-threshold", str(segmenter.objective.flow_error)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with np.load(result) as found:
            return found["masks"].astype(np.int32), float(found["decode_seconds"])


if __name__ == "__main__":
    main()
