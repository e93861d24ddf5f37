"""Shared parts of the peers' training scripts: command line, images as dinocell.images reads them, and results.

The scripts run in environments of their own, with the repository on PYTHONPATH; see README.md here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinocell.datasets.labelled import open_dataset
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels, write_labels
from dinocell.metrics import pool, score_image

MONITORED = ("MMA", "SEG", "DET")  # the mean of which chooses a decoding, as in fine-tuning's validate.monitor=mean


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line of every peer."""

    dataset: list[Path]
    seconds: float
    out: Path
    threads: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One labelled image: gray (H, W) in its own dtype, labels int32 (H, W)."""

    dataset: str
    stem: str
    gray: np.ndarray
    labels: np.ndarray


def parse(description: str | None) -> Arguments:
    """Read the command line, and hold BLAS, OpenMP and OpenCV to `--threads`, before the peer is imported."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", nargs="+", type=Path, required=True, help="DATASET/{train,val,test}/{images,masks}"
    )
    parser.add_argument("--seconds", type=float, required=True, help="wall-clock budget of the training")
    parser.add_argument("--out", type=Path, required=True, help="folder for peer.json and the label images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(given.threads)
    import cv2

    cv2.setNumThreads(given.threads)
    return Arguments(**vars(given))


def pictures(roots: Sequence[Path], split: Any) -> list[Picture]:
    """Images of a split with their labels, the same split and gray values that fine-tuning sees."""
    return [
        Picture(
            dataset=root.resolve().name,
            stem=item.stem,
            gray=to_gray(read_image(item.image)),
            labels=read_labels(item.mask),
        )
        for root in roots
        for item in open_dataset(root, split)
    ]


def mean_score(truths: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Mean of MMA, SEG and DET, pooled."""
    metrics = pool(score_image(truth, labels) for truth, labels in zip(truths, found, strict=True)).metrics()
    return float(np.mean([metrics[name] for name in MONITORED]))


def finish(
    arguments: Arguments,
    segment: Callable[[np.ndarray], np.ndarray],
    *,
    name: str,
    version: str,
    train_seconds: float,
    notes: dict[str, Any],
) -> None:
    """Segment the test split; write OUT/labels/DATASET/STEM_labels.tif and, last, OUT/peer.json."""
    seconds, images = 0.0, pictures(arguments.dataset, "test")
    segment(images[0].gray)  # compilers and caches warm up outside the clock
    for picture in images:
        start = time.perf_counter()
        labels = segment(picture.gray)
        seconds += time.perf_counter() - start
        path = arguments.out / "labels" / picture.dataset / f"{picture.stem}_labels.tif"
        write_labels(path, np.asarray(labels).astype(np.int32))
    result = {
        "name": name,
        "version": version,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "budget_seconds": arguments.seconds,
        "train_seconds": train_seconds,
        "seconds_per_image": seconds / len(images),
        "images": len(images),
        **notes,
    }
    (arguments.out / "peer.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
