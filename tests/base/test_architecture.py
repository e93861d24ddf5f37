"""Who may import whom, and that the script folders shadow nothing (docs: the layout is a contract)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = ("ssl", "finetune", "data_curation", "slurm")
# module or package → what none of its files may import
FORBIDDEN = {
    "pretrain": ("dinocell.finetune", "dinocell.inference", "dinocell.adapt"),
    "finetune": ("dinocell.pretrain", "dinocell.adapt"),
    "inference": ("dinocell.pretrain", "dinocell.finetune", "dinocell.adapt"),
    "napari": ("dinocell.pretrain", "dinocell.finetune"),
    "metrics": ("torch", "dinocell.pretrain", "dinocell.finetune", "dinocell.models"),
    "curation": ("torch",),
    "models": ("dinocell.pretrain", "dinocell.finetune", "dinocell.inference"),
    "objectives": ("dinocell.pretrain", "dinocell.finetune", "dinocell.models"),
}
ONLY = {
    "submitit": ("launch.py",),
    "omegaconf": ("config.py",),
    "xformers": ("models/attention.py",),
    "napari": ("napari/widget.py",),
    "qtpy": ("napari/widget.py",),
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_do_not_import_what_lies_beyond_them(package: str, repository: Path) -> None:
    files = sorted((repository / "dinocell" / package).rglob("*.py"))
    assert files
    found = [(f.name, n) for f in files for n in imports(f) if any(within(n, bad) for bad in FORBIDDEN[package])]
    assert found == []


@pytest.mark.parametrize("dependency", ONLY)
def test_a_dependency_has_one_importer(dependency: str, repository: Path) -> None:
    root = repository / "dinocell"
    importers = {
        f.relative_to(root).as_posix() for f in root.rglob("*.py") if any(within(n, dependency) for n in imports(f))
    }
    assert importers == set(ONLY[dependency])


@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_are_thin_and_no_packages(folder: str, repository: Path) -> None:
    assert not (repository / folder / "__init__.py").exists()
    scripts = sorted((repository / folder).glob("*.py"))
    assert scripts
    for script in scripts:
        assert script.stem not in sys.stdlib_module_names
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 40, script
        assert all(within(n, "dinocell") or n.split(".")[0] in sys.stdlib_module_names for n in imports(script))


def test_ssl_at_the_root_is_the_standard_library(repository: Path) -> None:
    code = "import ssl, sys; print(ssl.OPENSSL_VERSION); import dinocell; print(ssl.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert "OpenSSL" in done.stdout
    assert str(repository) not in done.stdout.splitlines()[1]


def test_import_dinocell_is_light(repository: Path) -> None:
    code = "import dinocell, dinocell.metrics, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_only_the_library_is_installed() -> None:
    from setuptools import find_packages

    root = Path(__file__).resolve().parents[2]
    packages = find_packages(str(root), include=["dinocell", "dinocell.*"])
    assert "dinocell" in packages
    assert {name.split(".")[0] for name in packages} == {"dinocell"}
    modules = {p.parent.relative_to(root).as_posix().replace("/", ".") for p in (root / "dinocell").rglob("*.py")}
    assert modules <= set(packages)  # a folder without __init__.py would be left out of an installed copy


@pytest.mark.parametrize(
    "script",
    [
        "ssl/train.py",
        "ssl/export_backbone.py",
        "finetune/train.py",
        "finetune/evaluate.py",
        "data_curation/curate.py",
        "slurm/submit.py",
    ],
)
def test_every_script_answers_help(script: str, repository: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert done.stderr == ""
