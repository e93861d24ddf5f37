"""Curation against merely decoding the same files and encoding the same crops, on one core.

    python benchmarks/curation.py SRC… [--json FILE]

Prints images/s and MB/s of the whole pipeline, of decoding + encoding alone, and of the best-crop search against a
plain scipy implementation (integral images in float64). Times are CPU seconds of this process, the best of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from dinocell.curation import CurateConfig, best_crop
from dinocell.curation.extract import Found, extract
from dinocell.curation.sources import find_sources
from dinocell.data.io import read_series

REPEATS = 3


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = CurateConfig(sources=tuple(arguments.sources), out=folder, workers=1)
        sources = find_sources(config)
        found: list[Found] = []
        pipeline = best(lambda: found.extend(item for source in sources for item in extract(source, config)))
        crops = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(Path(folder, "crops").rglob("*.png"))]
    decode = best(lambda: [image for source in sources for image in read_series(source.path)])
    encode = best(lambda: [cv2.imencode(".png", crop) for crop in crops])
    megabytes = sum(Path(source.path).stat().st_size for source in sources) / 1e6
    scale = np.random.default_rng(0).integers(0, 256, (2048, 2048)).astype(np.uint8)
    ours, plain = best(lambda: best_crop(scale, 1024)), best(lambda: scipy_crop(scale, 1024))
    results = {
        "files": len(sources),
        "megabytes": megabytes,
        "pipeline_s": pipeline,
        "decode_s": decode,
        "encode_s": encode,
        "ratio": pipeline / (decode + encode),
        "best_crop_2048_s": ours,
        "best_crop_2048_scipy_s": plain,
    }
    rows = [("whole pipeline", pipeline), ("decode + encode alone", decode + encode)]
    for name, seconds in rows:
        print(f"{name:24} {seconds:7.2f} s {len(sources) / seconds:8.1f} images/s {megabytes / seconds:7.1f} MB/s")
    print(f"ratio                    {results['ratio']:7.2f}")
    print(f"best crop of 2048²       {ours * 1e3:7.1f} ms; scipy {plain * 1e3:.1f} ms, {plain / ours:.1f} ×")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def best(function: Callable[[], object]) -> float:
    """Least CPU seconds of `REPEATS` calls; the first also warms caches and compiles."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


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
