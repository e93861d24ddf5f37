"""Records objectives_cellpose.npz, Cellpose's own targets and masks of one difficult label image, and
objectives_cellpose_noisy.npz, its masks from flows as an undertrained network gives them.

PYTHONPATH=CELLPOSE_CHECKOUT python tests/golden/objectives_generate.py PYTHON_OF_A_VENV_WITH_CELLPOSE
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

HERE = Path(__file__).parent
PEER = HERE.parents[1] / "benchmarks" / "peers" / "objectives_cellpose.py"
SOURCE = "MouseLand/cellpose 849ca11f17882219f9968217eab3f6b19e3ce8aa, cellpose/dynamics.py, CPU, float64"


def label_image() -> np.ndarray:
    """Touching, border-cut, concave, thin, one-pixel and one-pixel-wide cells, (56, 72) int32."""
    labels = np.zeros((56, 72), np.int32)
    y, x = np.mgrid[:56, :72]
    labels[(y - 12) ** 2 + (x - 12) ** 2 <= 81] = 1
    labels[2:22, 21:34] = 2
    labels[0:9, 34:50] = 3
    labels[(abs(y - 34) <= 12) & (abs(x - 14) <= 12) & ~((y < 34) & (abs(x - 14) <= 5))] = 4
    labels[26:30, 30:70] = 5
    labels[30:34, 30:70] = 6
    labels[40, 40] = 7
    labels[44:56, 52:72] = 8
    labels[38:54, 28:29] = 9
    labels[(y - 16) ** 2 + (x - 60) ** 2 <= 36] = 10
    labels[((y - 47) ** 2 / 30 + (x - 40) ** 2 / 60 <= 1) & (labels == 0)] = 11
    return labels


def noisy_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Flows (2, 144, 176) int8 in 64ths of a pixel and probability (144, 176) uint8: short, uncertain flows."""
    rng = np.random.default_rng(seed)
    shape = 144, 176
    centres = rng.uniform(0, shape, (30, 2))
    y, x = np.mgrid[: shape[0], : shape[1]]
    offset = centres[:, :, None, None] - np.stack([y, x])  # (30, 2, 144, 176)
    distance = np.hypot(offset[:, 0], offset[:, 1])
    nearest = distance.argmin(axis=0)
    toward = np.take_along_axis(offset, nearest[None, None], axis=0)[0]
    reach = np.take_along_axis(distance, nearest[None], axis=0)[0]
    unit = toward / np.maximum(reach, 1)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 3, 3))
    flows = (0.3 + 0.6 * rng.random(30)[nearest]) * unit + 0.3 * noise / noise.std()
    probability = 1 / (1 + np.exp((reach - 13) / 2)) + 0.15 * ndimage.gaussian_filter(rng.normal(size=shape), 2) * 4
    return np.clip(np.round(64 * flows), -127, 127).astype(np.int8), (255 * np.clip(probability, 0, 1)).astype(np.uint8)


def run_cellpose(flow_threshold: float, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Cellpose's flows and masks."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **arrays)
        command = [sys.argv[1], str(PEER), str(given), str(result), "--flow-threshold", str(flow_threshold)]
        subprocess.run(command, check=True)
        return dict(np.load(result))


def main() -> None:
    """Runs Cellpose and writes what it was given, what it made of it, and the source."""
    labels = label_image()
    peer = run_cellpose(0.4, labels=labels)
    masks = peer["masks"].astype(np.uint8)
    np.savez_compressed(
        HERE / "objectives_cellpose.npz",
        labels=labels.astype(np.uint8),
        flows=peer["flows"],
        masks=masks,
        source=SOURCE,
    )
    record: dict[str, np.ndarray] = {}
    for seed in range(3):
        flows, probability = noisy_maps(seed)
        record |= {f"flows_{seed}": flows, f"probability_{seed}": probability}
        for name, threshold in (("checked", 0.4), ("unchecked", 0.0)):
            maps = {"flows": flows / np.float32(64), "probability": probability / np.float32(255)}
            peer = run_cellpose(threshold, labels=np.ones(flows.shape[1:], int), **maps)
            record[f"{name}_{seed}"] = peer["masks"].astype(np.uint8)
    np.savez_compressed(HERE / "objectives_cellpose_noisy.npz", source=np.array(SOURCE), **record)


if __name__ == "__main__":
    main()
