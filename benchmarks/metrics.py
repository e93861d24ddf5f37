"""Metrics against the field's implementations on the same label images, on one core.

    python benchmarks/metrics.py [--sizes 512,1024,2048,4096] [--json FILE]
        [--peer-python ENV/bin/python --cellpose-metrics cellpose/metrics.py]

Prints CPU milliseconds for one image (best of some): our MMA and all our metrics together, and networkx's
maximum-weight matching, which is given our table of overlaps for nothing; its ratio to our matching alone (of the same
table) and to our whole MMA (from the label images). With --peer-python (an environment with py-ctcmetrics, StarDist and
scikit-image) also SEG/DET of py-ctcmetrics and AP of StarDist and Cellpose; about five minutes with everything.
Also growth with the image's area, and peak memory beyond the inputs in bytes a pixel.

Two cases: `similar` (the truth shifted by 3 px, as good predictions are) and `unrelated` (cells elsewhere, where every
cell overlaps several others and matching is hardest).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))

from dinocell.metrics import find_overlaps, maximum_matching_accuracy, score_image
from dinocell.metrics.matching import Overlaps
from dinocell.metrics.mma import mma_areas

CELLS_PER_MEGAPIXEL = 900
NETWORKX_LIMIT = 4_000  # cells above which networkx takes minutes
PEER_LIMIT = 2048


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="512,1024,2048,4096")
    parser.add_argument("--json", default="")
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--cellpose-metrics", default="")
    arguments = parser.parse_args()
    rows = []
    for size in map(int, arguments.sizes.split(",")):
        truth = cells(size, seed=0)
        for case, predicted in (("similar", np.roll(truth, 3, axis=1)), ("unrelated", cells(size, seed=1))):
            row = measure(truth, predicted) | {"size": size, "case": case, "cells": int(truth.max())}
            if arguments.peer_python and size <= PEER_LIMIT:
                row |= measure_peers(truth, predicted, arguments.peer_python, arguments.cellpose_metrics)
            rows.append(row)
            print(line(row), flush=True)
    print(growth(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def cells(size: int, seed: int) -> NDArray[np.int32]:
    """Touching cells, at most 12 px from their seed: random seeds grown to the nearest one."""
    rng = np.random.default_rng(seed)
    count = CELLS_PER_MEGAPIXEL * size * size // 1024**2
    seeds = np.zeros((size, size), np.int32)
    seeds[tuple(rng.integers(0, size, (2, count)))] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < 12, seeds[tuple(nearest)], 0).astype(np.int32)


def measure(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
    """Our times in milliseconds, our memory in bytes a pixel, and networkx's time and value."""
    row = {
        "overlaps_ms": best(lambda: find_overlaps(truth, predicted)),
        "mma_ms": best(lambda: maximum_matching_accuracy(truth, predicted)),
        "all_metrics_ms": best(lambda: score_image(truth, predicted)),
        "bytes_per_pixel": peak_bytes(lambda: score_image(truth, predicted)) / truth.size,
        "mma": maximum_matching_accuracy(truth, predicted),
    }
    table = find_overlaps(truth, predicted)
    row["matching_ms"] = best(lambda: mma_areas(table))
    if truth.max() <= NETWORKX_LIMIT:
        start = time.process_time()
        value = networkx_mma(table)
        row["networkx_ms"] = 1e3 * (time.process_time() - start)
        row["networkx_to_matching"] = row["networkx_ms"] / row["matching_ms"]
        row["networkx_to_mma"] = row["networkx_ms"] / row["mma_ms"]
        assert abs(value - row["mma"]) < 1e-12, "networkx gives another MMA"
    return row


def networkx_mma(table: Overlaps) -> float:
    """MMA with networkx doing the matching of overlaps that are given to it."""
    import networkx

    graph = networkx.Graph()
    pairs = zip(table.rows.tolist(), table.columns.tolist(), table.intersections.tolist(), strict=True)
    graph.add_weighted_edges_from((row, -1 - column, shared) for row, column, shared in pairs)
    total = sum(graph.edges[edge]["weight"] for edge in networkx.max_weight_matching(graph))
    union = table.truth_areas.sum() + table.prediction_areas.sum() - table.intersections.sum()
    return float(total / union)


def measure_peers(truth: NDArray[Any], predicted: NDArray[Any], python: str, cellpose: str) -> dict[str, float]:
    """Times of the peers in their own environment, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "labels.npz"), truth=truth, predicted=predicted)
        script = Path(__file__).parent / "peers" / "metrics_field.py"
        command = [python, str(script), folder, cellpose]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f"the peers failed: {answer.stderr.strip().splitlines()[-1]}")
    times: dict[str, float] = json.loads(answer.stdout.strip().splitlines()[-1])
    return times


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Shortest time in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory held at once beyond what was there before."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    peers = ", ".join(
        f"{name.removesuffix('_ms')} {row[name]:,.0f} ms" for name in row if name.endswith("_ms") and name not in OURS
    )
    ratio = ""
    if "networkx_ms" in row:
        ratio = f" ({row['networkx_to_matching']:,.0f}× our matching, {row['networkx_to_mma']:,.0f}× our whole MMA)"
    return (
        f"{row['size']}² {row['cells']:6,} cells {row['case']:9}  MMA {row['mma_ms']:6.1f} ms, all metrics "
        f"{row['all_metrics_ms']:6.1f} ms, {row['bytes_per_pixel']:4.1f} bytes/px   {peers}{ratio}"
    )


OURS = ("overlaps_ms", "matching_ms", "mma_ms", "all_metrics_ms")


def growth(rows: list[dict[str, Any]]) -> str:
    """How the time of all metrics grows from one size to the next."""
    lines = []
    for case in ("similar", "unrelated"):
        chosen = [row for row in rows if row["case"] == case]
        for small, large in itertools.pairwise(chosen):
            factor = large["all_metrics_ms"] / small["all_metrics_ms"]
            lines.append(f"{case}: {small['size']}² → {large['size']}²: {factor:.1f}× the time")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
