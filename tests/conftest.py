"""Shared by all tests: one thread, the same random numbers, a tiny recipe, and the folder of real images, if any."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dinocell.finetune import FinetuneConfig

os.environ.setdefault("MPLBACKEND", "Agg")
# One thread per process, set before NumPy, OpenCV and torch are imported: the order of a sum, so its last digit,
# depends on how many there are, and the processes of `make test` must not fight for two cores. What tests start
# inherits it.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ[_name] = "1"
_START: dict[tuple[str, str], Any] = {}
"""The states of the generators that are globals of a test module, before its first test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure: all that it needs is there")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings  # here, as make test-napari does without it

        settings.register_profile("same", derandomize=True, database=None, deadline=None)
        settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let every test draw the same random numbers, whichever tests its process ran before."""
    import numpy as np  # here, once the number of threads is set

    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    module = getattr(item, "module", None)
    for name, value in vars(module).items() if module else ():
        if isinstance(value, np.random.Generator):
            bits = value.bit_generator
            bits.state = _START.setdefault((module.__name__, name), bits.state)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    return _without_skip(report, item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    return _without_skip(report, collector.config)


def _without_skip(report: Any, config: pytest.Config) -> Any:
    if report.skipped and config.getoption("--no-skips"):
        report.outcome, report.longrepr = "failed", f"skipped, with --no-skips: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by DINOCELL_REAL_DATA (`labelled/`, `unlabelled/`); the test is skipped without it."""
    folder = os.environ.get("DINOCELL_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DINOCELL_REAL_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny() -> Callable[..., FinetuneConfig]:
    """Makes a recipe of a network and a training that take seconds."""
    return _tiny_recipe


def _tiny_recipe(root: Path, out: Path, *changes: dict[str, Any]) -> FinetuneConfig:
    """For the dataset `root`, with changes; of sections only the keys given are changed."""
    from dinocell.core.config import from_dict
    from dinocell.finetune import FinetuneConfig

    base: dict[str, Any] = {
        "output_dir": str(out),
        "device": "cpu",
        "precision": "float32",
        "crop_size": 32,
        "input_size": 32,
        "overlap": 8,
        "data": {"root": [str(root)], "workers": 0},
        "backbone": {"arch": "vit_tiny", "depth": 1, "layerscale_init": 1.0},
        "decoder": {"kind": "bilinear", "neck_width": 16, "drop_rate": 0.0},
        "train": {"batch_size": 4, "lr": 1e-3, "log_every": 1},
        "validate": {"times": 0, "tune_decoding": False},
    }
    for change in changes:
        for key, value in change.items():
            base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return from_dict(FinetuneConfig, base)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """tests/oracle.py: a network that knows the truth. It needs torch, so it is loaded on first use."""
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_oracle(oracle: ModuleType) -> Callable[..., Any]:
    """Builds (image, segmenter) for known labels: the segmenter must give the labels back."""
    build: Callable[..., Any] = oracle.build
    return build


@pytest.fixture
def make_disks(oracle: ModuleType) -> Callable[..., Any]:
    disks: Callable[..., Any] = oracle.disks
    return disks


@pytest.fixture
def cells_agree(oracle: ModuleType) -> Callable[..., bool]:
    same: Callable[..., bool] = oracle.same_cells
    return same
