"""A tiny model trained for seconds on disks, and unlabelled images of darker, larger disks."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.finetune import FinetuneConfig, run


def disks(rng: np.random.Generator, size: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((size, size), np.uint16)
    for cell, (y, x) in enumerate(np.mgrid[16:size:32, 16:size:32].reshape(2, -1).T, 1):
        centre = (int(x + rng.integers(-4, 5)), int(y + rng.integers(-4, 5)))
        cv2.circle(labels, centre, int(rng.integers(8, 12)), cell, -1)
    image = (60 + level * (labels > 0) + rng.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
    return image, labels


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("adapt") / "disks", np.random.default_rng(0)
    for split, count in {"train": 8, "val": 2, "test": 4}.items():
        for number in range(count):
            for kind, array in zip(("images", "masks"), disks(rng, 64, 120), strict=True):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / split / kind / f"{number}.png"), array)
    return root


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("adapt_images"), np.random.default_rng(1)
    for number in range(6):
        cv2.imwrite(str(root / f"field{number}.png"), disks(rng, 96, 90)[0])
    return root


@pytest.fixture(scope="session")
def model(labelled: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., FinetuneConfig]) -> Path:
    return trained(labelled, tmp_path_factory.mktemp("adapt_model"), tiny, detail_width=8)


@pytest.fixture(scope="session")
def plain_model(labelled: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., FinetuneConfig]) -> Path:
    """Without the convolutional branch: all it knows of an image comes through the backbone."""
    return trained(labelled, tmp_path_factory.mktemp("adapt_plain_model"), tiny, detail_width=0)


def trained(labelled: Path, out: Path, tiny: Callable[..., FinetuneConfig], *, detail_width: int) -> Path:
    changes = {
        "crop_size": 64,
        "input_size": 64,
        "overlap": 16,
        "backbone": {"depth": 2},
        "decoder": {"neck_width": 32, "detail_width": detail_width},
        "objective": {"flow_error": 0.0},
        "train": {"steps": 100, "lr": 3e-3, "clip_gradient": 1.0},  # after 40, some CPUs' rounding finds no cell
        "validate": {"tune_decoding": True},
    }
    return run(tiny(labelled, out, changes)).folder / "model"
