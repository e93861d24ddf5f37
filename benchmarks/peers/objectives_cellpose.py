"""Cellpose 4's flow targets and decoding of one label image, timed; benchmarks/objectives.py runs it in its own venv.

    python benchmarks/peers/objectives_cellpose.py INPUT.npz OUTPUT.npz --threads 1 --repeats 1

INPUT holds `labels` (H, W) and, to decode others' maps, `flows` (2, H, W) at unit scale and `probability` (H, W).
OUTPUT gets `flows`, `masks`, `target_seconds` and `decode_seconds` (best of the repeats; `target_cpu` and `decode_cpu`
in CPU seconds of the process), `version`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
import types

import numpy as np

# Cellpose imports both for its network, which this script does not touch; torchvision has no build for every torch.
for name in ("torchvision", "torchvision.transforms", "segment_anything"):
    sys.modules.setdefault(name, types.ModuleType(name))
for name in ("functional", "_functional_tensor"):
    setattr(sys.modules["torchvision.transforms"], name, None)
import torch  # noqa: E402
from cellpose import dynamics  # noqa: E402


def main() -> None:
    """Times masks_to_flows_gpu and resize_and_compute_masks (flow check, hole filling, small masks) on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--flow-threshold", type=float, default=0.4, help="Cellpose's flow check; 0 = none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    data = np.load(arguments.input)
    labels = data["labels"].astype(int)
    seconds: dict[str, list[float]] = {"target_seconds": [], "target_cpu": [], "decode_seconds": [], "decode_cpu": []}
    for _ in range(arguments.repeats):
        start, cpu = time.perf_counter(), time.process_time()
        flows = dynamics.masks_to_flows_gpu(labels, device=device)
        seconds["target_seconds"].append(time.perf_counter() - start)
        seconds["target_cpu"].append(time.process_time() - cpu)
        flows = flows[0] if isinstance(flows, tuple) else flows  # a tuple from 4.1 on
        given = data.get("flows", flows)
        probability = data["probability"] if "probability" in data else (labels > 0).astype(np.float32)
        # Cellpose takes flows at 5x and compares a logit with 0.
        scaled, logit = (5 * given).astype(np.float32), (probability - 0.5).astype(np.float32)
        start, cpu = time.perf_counter(), time.process_time()
        masks = dynamics.resize_and_compute_masks(scaled, logit, device=device, flow_threshold=arguments.flow_threshold)
        seconds["decode_seconds"].append(time.perf_counter() - start)
        seconds["decode_cpu"].append(time.process_time() - cpu)
    np.savez(
        arguments.output,
        flows=flows.astype(np.float32),
        masks=masks,
        version=importlib.metadata.version("cellpose"),
        **{name: min(values) for name, values in seconds.items()},
    )


if __name__ == "__main__":
    main()
