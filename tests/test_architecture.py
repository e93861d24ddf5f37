"""The rules of the tree: who may import whom, how large a room may be, and that the script folders shadow nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = ("ssl", "finetune", "data_curation", "slurm")
ROOMS: dict[str, set[str]] = {
    # room → the rooms it may import from; the arrows point down, so a room is listed below all that it may import
    "core": set(),
    "training": {"core"},
    "metrics": set(),
    "images": {"core"},
    "labels": {"core", "images"},
    "datasets": {"core", "images", "labels"},
    "curation": {"core", "images"},
    "objectives": {"core", "images", "labels"},
    "models": {"core", "training", "images", "objectives"},
    "report": {"core", "images", "labels"},
    "predict": {"core", "images", "labels", "models", "objectives"},
    "segmentation": {"core", "images", "labels", "models", "objectives", "predict", "report"},
    "pretrain": {"core", "training", "images", "labels", "datasets", "models", "report"},
    "finetune": {
        "core",
        "training",
        "metrics",
        "images",
        "labels",
        "datasets",
        "models",
        "objectives",
        "report",
        "predict",
    },
    "evaluation": {"core", "metrics", "images", "labels", "datasets", "models", "report", "segmentation"},
    "export": {
        "core",
        "metrics",
        "images",
        "labels",
        "datasets",
        "models",
        "objectives",
        "report",
        "predict",
        "segmentation",
    },
    "napari": {"core", "images", "labels", "datasets", "models", "objectives", "predict", "segmentation"},
}
# rooms that stand above all of these, and what even they may not import
UPPER: dict[str, set[str]] = {
    "adapt": {"cli", "cluster", "demo", "napari", "export"},
    "demo": {"cli", "cluster", "napari", "export", "adapt"},
    "cluster": {"cli", "napari", "demo", "adapt", "export"},
    "cli": {"napari"},
}
WITHOUT_TORCH = ("metrics", "labels", "curation", "images")
ONLY = {
    "submitit": {"cluster/submit.py", "cluster/job.py", "cluster/requeueing.py"},
    "omegaconf": {"core/config.py"},
    "xformers": {"models/vit/attention.py"},
    "napari": {"napari/widget.py"},
    "qtpy": {"napari/widget.py"},
}
MOST_MODULES = 12


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def library(repository: Path) -> list[Path]:
    return sorted((repository / "dinocell").rglob("*.py"))


def room_of(file: Path, repository: Path) -> str:
    inside = file.relative_to(repository / "dinocell").parts
    return inside[0] if len(inside) > 1 else ""


def rooms_imported(file: Path, repository: Path) -> set[str]:
    named = {name.split(".")[1] for name in imports(file) if name.startswith("dinocell.")}
    return named & ({*ROOMS, *UPPER} - {room_of(file, repository)})


def test_every_room_has_its_rule(repository: Path) -> None:
    folders = {file.parts[0] for f in library(repository) if (file := f.relative_to(repository / "dinocell")).parts[1:]}
    assert folders == {*ROOMS, *UPPER}


def test_the_rules_point_down() -> None:
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= above, f"{room} imports from a room that is listed below it"
        above.add(room)


@pytest.mark.parametrize("room", [*ROOMS, *UPPER])
def test_rooms_import_only_what_stands_below_them(room: str, repository: Path) -> None:
    files = sorted((repository / "dinocell" / room).rglob("*.py"))
    assert files
    forbidden = UPPER[room] if room in UPPER else {*ROOMS, *UPPER} - ROOMS[room]
    found = [(f.name, sorted(bad)) for f in files if (bad := rooms_imported(f, repository) & forbidden)]
    assert found == []


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_without_torch(room: str, repository: Path) -> None:
    files = sorted((repository / "dinocell" / room).rglob("*.py"))
    assert [f.name for f in files if any(within(name, "torch") for name in imports(f))] == []
    modules = [".".join(f.relative_to(repository).with_suffix("").parts).removesuffix(".__init__") for f in files]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "torch comes in through another module"


@pytest.mark.parametrize("dependency", ONLY)
def test_a_dependency_has_one_importer(dependency: str, repository: Path) -> None:
    root = repository / "dinocell"
    importers = {
        f.relative_to(root).as_posix() for f in root.rglob("*.py") if any(within(n, dependency) for n in imports(f))
    }
    assert importers == ONLY[dependency]


def test_no_folder_is_too_full(repository: Path) -> None:
    folders = {f.parent for f in library(repository)} - {repository / "dinocell"}
    counts = {d.name: len([f for f in d.glob("*.py") if f.name != "__init__.py"]) for d in folders}
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def test_no_function_is_named_like_its_module(repository: Path) -> None:
    found = []
    for file in library(repository):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        functions = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        if file.stem in functions:
            found.append(file.relative_to(repository).as_posix())
    assert found == []


def test_no_package_hides_a_module_of_its_own(repository: Path) -> None:
    """`import dinocell.a.b as m` must give the module b, so no package may bind another thing to that name."""
    found = []
    for file in library(repository):
        if file.name != "__init__.py":
            continue
        own = {f.stem for f in file.parent.glob("*.py")} | {f.parent.name for f in file.parent.glob("*/__init__.py")}
        package = ".".join(file.parent.relative_to(repository).parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module != package:
                found += [(package, alias.name) for alias in node.names if (alias.asname or alias.name) in own]
    assert found == []


def test_nobody_but_the_objectives_asks_for_their_kind(repository: Path) -> None:
    """A new objective is one file: others ask it what they need to know, never which one it is."""
    found = []
    for file in library(repository):
        if room_of(file, repository) == "objectives":
            continue
        tree, uses = ast.parse(file.read_text(encoding="utf-8")), set(imports(file))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        asked = [name for name in names if name.endswith("Objective") and name != "Objective"]
        if any(within(name, "dinocell.objectives") for name in uses):
            asked += [ast.unparse(node) for node in ast.walk(tree) if is_kind(node)]
        found += [(file.relative_to(repository).as_posix(), what) for what in asked]
    assert found == []


def is_kind(node: ast.AST) -> bool:
    """Whether code reads `.kind` of anything but a number type or a decoder, or tests for an objective's class."""
    if isinstance(node, ast.Attribute) and node.attr == "kind":
        return not ast.unparse(node.value).endswith(("dtype", "decoder"))
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and "Objective" in ast.unparse(node)


def test_the_objectives_form_no_circle(repository: Path) -> None:
    """base.py knows no objective; build.py knows all of them."""
    folder = repository / "dinocell" / "objectives"
    assert not [name for name in imports(folder / "base.py") if within(name, "dinocell.objectives")]
    for file in {*folder.rglob("*.py")} - {folder / "__init__.py"}:
        assert not any(within(name, "dinocell.objectives.build") for name in imports(file)), file


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


def test_import_segmentation_leaves_the_compiler_alone(repository: Path) -> None:
    """torch._dynamo takes seconds to import, and only a training that compiles needs it."""
    code = "import dinocell.segmentation, sys; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_import_dinocell_alone_needs_nothing_heavy(repository: Path) -> None:
    code = "import dinocell, sys; print(sorted({'numpy', 'torch', 'cv2', 'rich', 'typer', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_library_is_installed() -> None:
    from setuptools import find_packages

    root = Path(__file__).resolve().parents[1]
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
