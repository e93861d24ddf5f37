"""Nothing that a user is given may run code: how the sources load, and what becomes of a malicious file."""

from __future__ import annotations

import ast
import io
import pickle
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dinocell.core.config import load
from dinocell.core.errors import CheckpointError, ConfigError, DataError
from dinocell.core.files import load_file
from dinocell.datasets.prepare.cellpose import read_seg_masks
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.images.read import read_image
from dinocell.models import load_backbone, load_model_folder
from dinocell.training.checkpoint import CheckpointManager

SOURCES = ("dinocell", "benchmarks", "ssl", "finetune", "data_curation", "slurm")
RESTRICTED = Path("dinocell/datasets/prepare/cellpose.py")
"""Holds the one unpickler, which lets in arrays and plain values."""
NEVER = (
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "eval",
    "exec",
)


def name_of(node: ast.expr) -> str:
    """Dotted name of what is called, as written."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@lru_cache(maxsize=1)
def trees(repository: Path) -> list[tuple[Path, ast.Module]]:
    """Every source file, parsed."""
    files = [file for folder in SOURCES for file in sorted((repository / folder).rglob("*.py"))]
    return [(file.relative_to(repository), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


@lru_cache(maxsize=1)
def calls(repository: Path) -> list[tuple[str, str, dict[str, object]]]:
    """(place, name, constant keywords) of every call in the sources, with names through `from a import b`."""
    return list(_calls(repository))


def _calls(repository: Path) -> Iterator[tuple[str, str, dict[str, object]]]:
    for path, tree in trees(repository):
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = name_of(node.func)
                constants = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant) and k.arg}
                place = f"{path.as_posix()}:{node.lineno}"
                yield place, imported.get(name, name), constants


def test_weights_are_loaded_without_running_code(repository: Path) -> None:
    loads = [(place, given) for place, name, given in calls(repository) if name == "torch.load"]
    assert loads
    assert [place for place, given in loads if given.get("weights_only") is not True] == []


def test_arrays_are_loaded_without_pickles(repository: Path) -> None:
    names = ("np.load", "numpy.load")
    assert [place for place, name, given in calls(repository) if name in names and given.get("allow_pickle")] == []


def test_nothing_else_that_runs_code_is_called(repository: Path) -> None:
    assert [(place, name) for place, name, _ in calls(repository) if name in NEVER] == []


def test_yaml_makes_plain_values_only(repository: Path, tmp_path: Path, mark: Path) -> None:
    loads = [place.partition(":")[0] for place, name, _ in calls(repository) if name == "yaml.load"]
    assert set(loads) == {"dinocell/core/config.py"}  # with a loader of its own, derived from the safe one
    (tmp_path / "a.yaml").write_text(
        f"src: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path {mark}]"
    )
    with pytest.raises(ConfigError):
        load(PrepareConfig, tmp_path / "a.yaml", [])
    assert not mark.exists()


def test_one_file_unpickles_and_it_restricts_what(repository: Path) -> None:
    found = []
    for path, tree in trees(repository):
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        found += [
            (path, {item.name for item in one.body if isinstance(item, ast.FunctionDef)})
            for one in classes
            if any(name_of(base).endswith("Unpickler") for base in one.bases)
        ]
    assert found == [(RESTRICTED, {"find_class"})]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


def test_the_malicious_pickle_would_run(mark: Path) -> None:
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_malicious_checkpoint_is_refused_before_it_runs(how: str, tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "weights.pth"
    content = {"cls_token": torch.zeros(1, 1, 192), "extra": Evil(mark)}
    if how == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    for reader in (load_file, load_backbone):
        with pytest.raises(CheckpointError, match=r"weights\.pth"):
            reader(path)
    assert not mark.exists()


def test_a_malicious_resume_checkpoint_and_model_folder_are_refused(tmp_path: Path, mark: Path) -> None:
    torch.save({"step": 1, "model": Evil(mark)}, tmp_path / "step_00000001.pt")
    assert CheckpointManager(tmp_path).load_latest() is None
    (tmp_path / "config.json").write_text("{}")
    torch.save(Evil(mark), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_model_folder(tmp_path)
    assert not mark.exists()


def test_malicious_arrays_are_refused(tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    np.save(tmp_path / "a_seg.npy", {"masks": Evil(mark)}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="pickled objects are not loaded"):
        read_image(tmp_path / "a.npy")
    with pytest.raises(DataError, match="is not loaded"):
        read_seg_masks(tmp_path / "a_seg.npy")
    assert not mark.exists()


def test_a_pickle_cannot_ask_for_an_array_of_any_size(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.save(head, np.array({}, dtype=object), allow_pickle=True)
    start = head.getvalue().index(b"\x80")
    sized = b"\x80\x02cnumpy\nndarray\n(J\x00\xca\x9a\x3bJ\x00\xca\x9a\x3bt\x85R."  # numpy.ndarray((10**9, 10**9))
    (tmp_path / "a_seg.npy").write_bytes(head.getvalue()[:start] + sized)
    with pytest.raises(DataError, match=r"a_seg\.npy: not a Cellpose"):
        read_seg_masks(tmp_path / "a_seg.npy")


def test_a_tensor_that_claims_more_than_the_file_stores_is_refused(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1).expand(1, 10**6, 10**6)}, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").stat().st_size < 10_000
    with zipfile.ZipFile(tmp_path / "weights.pth") as archive:
        assert archive.testzip() is None
    with pytest.raises(CheckpointError, match="more values than the file stores"):
        load_backbone(tmp_path / "weights.pth")
