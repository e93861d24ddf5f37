"""Flow targets and decoding against Cellpose 4, on the same labels in one run: speed, growth, memory, agreement.

    python benchmarks/objectives.py --peer VENV_WITH_CELLPOSE/bin/python --labels FOLDER_OF_LABEL_IMAGES

Takes about ten minutes on two CPU cores, nearly all of it Cellpose. Without --peer only our own figures are made.
Prints tables and writes objectives.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).parents[1]))

from dinocell.labels.files import read_labels
from dinocell.objectives import ObjectiveConfig
from dinocell.objectives.flows.objective import decode_flows
from dinocell.objectives.flows.targets import Variant, masks_to_flows

PEER = Path(__file__).parent / "peers" / "objectives_cellpose.py"
SPACING = 34  # px between cell centres: 900 cells in 1024²
Labels = npt.NDArray[np.int32]


def synthetic_labels(size: int, seed: int = 0) -> Labels:
    """Touching round cells on a jittered grid, (size, size) int32: each pixel goes to the nearest centre in reach."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(SPACING // 2, size, SPACING)] * 2), axis=-1).reshape(-1, 2)
    tree = cKDTree(grid + rng.uniform(-SPACING / 4, SPACING / 4, grid.shape))
    labels = np.empty((size, size), np.int32)
    for y in range(size):
        row = np.stack([np.full(size, y), np.arange(size)], axis=1)
        distance, nearest = tree.query(row, distance_upper_bound=SPACING * 0.55)
        labels[y] = np.where(np.isfinite(distance), nearest + 1, 0)
    return labels


def consecutive(labels: npt.NDArray[Any]) -> Labels:
    """Labels numbered 1…n, which Cellpose requires."""
    numbers, inverse = np.unique(labels, return_inverse=True)
    first = 0 if numbers[0] == 0 else 1
    return (inverse + first).reshape(labels.shape).astype(np.int32)


def average_precision(truth: npt.NDArray[Any], found: npt.NDArray[Any], threshold: float) -> float:
    """TP / (TP + FP + FN) at an IoU threshold ≥ 0.5, from the pairs of labels that overlap."""
    n, m = int(truth.max()), int(found.max())
    pairs, shared = np.unique(truth.astype(np.int64) * (m + 1) + found, return_counts=True)
    a, b = pairs // (m + 1), pairs % (m + 1)
    sizes = np.bincount(truth.ravel(), minlength=n + 1), np.bincount(found.ravel(), minlength=m + 1)
    iou = shared / (sizes[0][a] + sizes[1][b] - shared)
    hits = int(((iou > threshold) & (a > 0) & (b > 0)).sum())
    return hits / (n + m - hits) if n + m else 1.0


def time_ours(labels: Labels, threads: int, repeats: int, noise: float = 0.0) -> dict[str, Any]:
    """Best seconds (and CPU seconds) of targets and decoding, and their results."""
    probability = (labels > 0).astype(np.float32)
    seconds: dict[str, list[float]] = {"target_seconds": [], "target_cpu": [], "decode_seconds": [], "decode_cpu": []}
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        flows = masks_to_flows(labels, threads=threads)
        seconds["target_seconds"].append(time.perf_counter() - start)
        seconds["target_cpu"].append(time.process_time() - cpu)
        if noise:
            flows = blur_flows(flows, noise)
        start, cpu = time.perf_counter(), time.process_time()
        masks, _ = decode_flows(flows, probability, threads=threads)
        seconds["decode_seconds"].append(time.perf_counter() - start)
        seconds["decode_cpu"].append(time.process_time() - cpu)
    return {name: min(values) for name, values in seconds.items()} | {"flows": flows, "masks": masks}


def blur_flows(flows: npt.NDArray[np.float32], noise: float) -> npt.NDArray[np.float32]:
    """Shorter flows with smooth noise of this standard deviation (px a step), as an undertrained network gives them."""
    smooth = gaussian_filter(np.random.default_rng(0).normal(size=flows.shape), (0, 3, 3))
    return (0.7 * flows + noise * smooth / smooth.std()).astype(np.float32)


def time_peer(
    python: str, labels: Labels, threads: int, flows: npt.NDArray[np.float32], repeats: int
) -> dict[str, Any]:
    """Cellpose's seconds and results, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, labels=labels, flows=flows)
        command = [python, "-W", "ignore", str(PEER), str(given), str(result)]
        command += ["--threads", str(threads), "--repeats", str(repeats)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return dict(np.load(result))


def compare(name: str, labels: Labels, python: str, threads: int, noise: float) -> dict[str, Any]:
    """One row: seconds of both, how many times faster, and agreement given the same flows."""
    ours = time_ours(labels, threads, 5, noise)
    peer = time_peer(python, labels, threads, ours["flows"], 3 if labels.size < 500_000 else 1)
    directed = (labels > 0) & (np.abs(peer["flows"]).sum(axis=0) > 0)
    cosine = (masks_to_flows(labels) * peer["flows"]).sum(axis=0)[directed]
    row: dict[str, Any] = {"labels": name, "size": "×".join(map(str, labels.shape)), "cells": int(labels.max())}
    row |= {"threads": threads, "peer": f"cellpose {peer['version']}"}
    for part in ("target", "decode"):
        for clock, short in (("seconds", "s"), ("cpu", "cpu")):
            mine, theirs = ours[f"{part}_{clock}"], float(peer[f"{part}_{clock}"])
            row |= {f"{part}_{short}": mine, f"peer_{part}_{short}": theirs, f"{part}_{short}_ratio": theirs / mine}
    row["mean_cosine"] = float(cosine.mean()) if len(cosine) else 1.0
    row["ap90_between"] = average_precision(peer["masks"], ours["masks"], 0.9)
    return row


def keep_freed_memory() -> None:
    """Restarts this program with glibc told to keep freed memory; the peer, started from here, is told the same.

    glibc gives freed memory of this size back to the system at once, and Cellpose allocates anew in every step: on some
    machines that alone triples its time. So it is arithmetic that is compared, and not the kernel's clearing of pages.
    """
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    if any(os.environ.get(name) != value for name, value in memory.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **memory})


def growth(sizes: list[int], threads: int) -> list[dict[str, Any]]:
    """Our seconds at each size, and the cost of four times the area."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        timed = time_ours(synthetic_labels(size), threads, repeats=4)
        row = {
            "size": size,
            "threads": threads,
            "target_s": timed["target_seconds"],
            "decode_s": timed["decode_seconds"],
        }
        if rows:
            row["target_growth"] = row["target_s"] / rows[-1]["target_s"]
            row["decode_growth"] = row["decode_s"] / rows[-1]["decode_s"]
        rows.append(row)
    return rows


def resident_peak() -> int:
    """Peak resident bytes of this process since the last reset (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure_memory(size: int) -> dict[str, Any]:
    """`memory` in a process of its own, that gives freed memory back at once: what is kept would hide what is used."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 17)  # a fixed value: by itself glibc raises it
    command = [sys.executable, __file__, "--memory-only", "--memory-size", str(size)]
    answer = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def memory(size: int) -> dict[str, Any]:
    """Peak bytes a pixel beyond inputs and outputs, of targets (both variants) and decoding."""
    labels = synthetic_labels(size)
    probability = (labels > 0).astype(np.float32)
    small = labels[:128, :128].copy()
    result: dict[str, Any] = {"size": size}
    for variant in get_args(Variant):
        config = ObjectiveConfig(flow_variant=variant)
        decode_flows(masks_to_flows(small, variant), small > 0, config)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_peak()
        flows = masks_to_flows(labels, variant)
        result[f"target_{variant}"] = (resident_peak() - before - flows.nbytes) / labels.size
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_peak()
        masks, _ = decode_flows(flows, probability, config)
        result[f"decode_{variant}"] = (resident_peak() - before - masks.nbytes) / labels.size
    return result


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as aligned columns."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{v:.4g}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names] for row in rows]
    widths = [max(len(line[k]) for line in [names, *cells]) for k in range(len(names))]
    print(f"\n{title}")
    for line in [names, *cells]:
        print("  ".join(value.rjust(width) for value, width in zip(line, widths, strict=True)))


def main() -> None:
    """Runs every part and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with cellpose")
    parser.add_argument("--labels", nargs="*", default=[], help="label images to compare on")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peer-size", type=int, default=1024, help="side of the synthetic image compared (px)")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="sides for the growth (px)"
    )
    parser.add_argument("--memory-size", type=int, default=4096, help="side for the memory measurement (px); 0 = none")
    parser.add_argument("--memory-only", action="store_true", help="print the memory measurement as JSON, and no more")
    parser.add_argument("--noise", type=float, default=0.0, help="decode noisy flows instead (px a step; try 0.3)")
    parser.add_argument("--out", default="objectives.json")
    arguments = parser.parse_args()
    if arguments.memory_only:
        print(json.dumps(memory(arguments.memory_size)))
        return
    keep_freed_memory()
    time_ours(synthetic_labels(128), 1, 1)
    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "compare": [], "growth": []}
    images = [("synthetic", synthetic_labels(arguments.peer_size))]
    images += [
        (path.parts[-4] + "/" + path.stem, consecutive(read_labels(path))) for path in map(Path, arguments.labels)
    ]
    for threads in arguments.threads:
        for name, labels in images if arguments.peer else []:
            report["compare"].append(compare(name, labels, arguments.peer, threads, arguments.noise))
            print(json.dumps(report["compare"][-1]), flush=True)
        report["growth"] += growth(arguments.sizes, threads)
    if arguments.peer:
        rows = [{k: v for k, v in row.items() if k != "peer"} for row in report["compare"]]
        print_table(f"Against {report['compare'][0]['peer']}, same labels; decoding from the same flows", rows)
    print_table("Growth with area (four times the area a row)", report["growth"])
    if arguments.memory_size:
        report["memory_bytes_per_pixel"] = measure_memory(arguments.memory_size)
        print_table("Peak bytes a pixel beyond inputs and outputs", [report["memory_bytes_per_pixel"]])
    Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
