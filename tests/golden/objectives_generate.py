"""Records tests/golden/objectives_cellpose.npz: Cellpose's own targets and masks of one difficult label image.

PYTHONPATH=CELLPOSE_CHECKOUT python tests/golden/objectives_generate.py PYTHON_OF_A_VENV_WITH_CELLPOSE
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

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


def main() -> None:
    """Runs Cellpose on the image and writes labels, flows, masks and their source."""
    labels = label_image()
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, labels=labels)
        subprocess.run([sys.argv[1], str(PEER), str(given), str(result)], check=True)
        peer = np.load(result)
        np.savez_compressed(
            HERE / "objectives_cellpose.npz",
            labels=labels.astype(np.uint8),
            flows=peer["flows"],
            masks=peer["masks"].astype(np.uint8),
            source=SOURCE,
        )


if __name__ == "__main__":
    main()
