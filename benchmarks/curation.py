"""Curation against merely decoding the same files and encoding the same crops, on one core.

    python benchmarks/curation.py SRC… [--repeats 10] [--json FILE]

Prints images/s and MB/s of the whole pipeline (`dinocell curate` from listing the files to the contact sheet, into an
empty folder), of decoding the same files and encoding the same crops in memory, and of the best-crop search against a
plain scipy implementation (integral images in float64). Each is the least CPU time (user and system) of the repeats,
which take turns; the first round, which warms caches and compiles, does not count. Output goes to TMPDIR.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from dinocell.curation import CurateConfig, best_crop, run
from dinocell.curation.sources import Source, find_sources
from dinocell.images.read import read_series

REPEATS = 10


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        sources = find_sources(CurateConfig(sources=tuple(arguments.sources), out=folder))
        pipeline, decode, encode, crops = rounds(tuple(arguments.sources), sources, Path(folder), arguments.repeats)
    megabytes = sum(Path(source.path).stat().st_size for source in sources) / 1e6
    scale = np.random.default_rng(0).integers(0, 256, (2048, 2048)).astype(np.uint8)
    ours, plain = best(lambda: best_crop(scale, 1024)), best(lambda: scipy_crop(scale, 1024))
    results = {
        "files": len(sources),
        "megabytes": megabytes,
        "crops": crops,
        "pipeline_s": min(pipeline),
        "decode_s": min(decode),
        "encode_s": min(encode),
        "ratio": min(pipeline) / (min(decode) + min(encode)),
        "ratio_median_of_rounds": float(np.median(np.divide(pipeline, np.add(decode, encode)))),
        "best_crop_2048_s": ours,
        "best_crop_2048_scipy_s": plain,
    }
    rows = [("whole pipeline", min(pipeline)), ("decode + encode alone", min(decode) + min(encode))]
    for name, seconds in rows:
        print(f"{name:24} {seconds:7.2f} s {len(sources) / seconds:8.1f} images/s {megabytes / seconds:7.1f} MB/s")
    median = results["ratio_median_of_rounds"]
    print(f"ratio                    {results['ratio']:7.2f} (median of the rounds' {median:.2f})")
    print(f"best crop of 2048²       {ours * 1e3:7.1f} ms; scipy {plain * 1e3:.1f} ms, {plain / ours:.1f} ×")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def rounds(
    names: tuple[str, ...], sources: list[Source], folder: Path, repeats: int
) -> tuple[list[float], list[float], list[float], int]:
    """CPU seconds of each round's pipeline, decoding and encoding, and the number of crops."""
    pipeline, decode, encode = [], [], []
    crops: list[np.ndarray] = []
    for number in range(repeats + 1):
        # A folder each, deleted at the end: ext4 spends time on files deleted a moment ago.
        out = folder / str(number)
        config = CurateConfig(sources=names, out=str(out), workers=1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pipeline.append(cpu_seconds(lambda config=config: run(config)))
        if not crops:
            made = [path for part in ("crops", "set_aside") for path in sorted((out / part).rglob("*.png"))]
            crops = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in made]
        decode.append(cpu_seconds(lambda: decode_all(sources)))
        encode.append(cpu_seconds(lambda crops=crops: encode_all(crops)))
    return pipeline[1:], decode[1:], encode[1:], len(crops)


def decode_all(sources: list[Source]) -> None:
    """What reading costs, with the reader of the pipeline."""
    for source in sources:
        for _ in read_series(source.path):
            pass


def encode_all(crops: list[np.ndarray]) -> None:
    """What writing costs, with the encoder of the pipeline, in memory."""
    for crop in crops:
        cv2.imencode(".png", crop)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def best(function: Callable[[], object]) -> float:
    """Least CPU seconds of a few calls after a first."""
    function()
    return min(cpu_seconds(function) for _ in range(3))


def scipy_crop(image: np.ndarray, size: int) -> tuple[int, int, float]:
    """The textbook way: Laplacian, two padded float64 integral images, every window at once."""
    laplacian = ndimage.laplace(image.astype(np.float64), mode="mirror")
    sums = []
    for values in (laplacian, laplacian**2):
        table = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums.append(table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size])
    variance = sums[1] / size**2 - (sums[0] / size**2) ** 2
    y, x = np.unravel_index(int(variance.argmax()), variance.shape)
    return int(y), int(x), float(variance[y, x])


if __name__ == "__main__":
    sys.exit(main())
