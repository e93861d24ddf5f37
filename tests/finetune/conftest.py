"""A tiny labelled dataset of bright disks on a dark, noisy ground."""

from pathlib import Path

import cv2
import numpy as np
import pytest


def write_disks(root: Path, splits: dict[str, int], size: int = 64) -> Path:
    """Write `splits` (name → images) under root; labels count from 1."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((size, size), np.uint16)
            for cell, (y, x) in enumerate(np.mgrid[16:size:32, 16:size:32].reshape(2, -1).T, 1):
                centre = (int(x + rng.integers(-4, 5)), int(y + rng.integers(-4, 5)))
                cv2.circle(labels, centre, int(rng.integers(8, 12)), cell, -1)
            image = (60 + 120 * (labels > 0) + rng.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / split / "images" / f"{number}.png"), image)
            cv2.imwrite(str(root / split / "masks" / f"{number}.png"), labels)
    return root


@pytest.fixture(scope="session")
def disks_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two validation images of 64 px with four disks each."""
    return write_disks(tmp_path_factory.mktemp("data") / "disks", {"train": 6, "val": 2})
