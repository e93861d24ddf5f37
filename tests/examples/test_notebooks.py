"""The notebooks run as they are, and what is stored in them is what a run gives: no errors, no paths, small."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

NAMES = ("segment_cells", "adapt_to_your_microscope", "train_on_your_masks")


@pytest.mark.slow
def test_the_notebooks_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one kernel: each starts with its own imports, and three kernels would take three times."""
    nbclient = pytest.importorskip("nbclient", reason="pip install -e .[test]")
    pytest.importorskip("ipykernel", reason="pip install -e .[test]")
    import nbformat

    monkeypatch.setenv("DINOCELL_EXAMPLES_QUICK", "1")
    paths = [str(repository / "examples"), str(repository), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebooks = [nbformat.read(repository / "examples" / f"{name}.ipynb", as_version=4) for name in NAMES]
    joined = notebooks[0]
    joined.cells = [cell for notebook in notebooks for cell in notebook.cells]
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(joined, timeout=280, kernel_name="python3", resources=where).execute()
    pictures = [output for cell in code_cells(joined) for output in cell["outputs"] if "image/jpeg" in data(output)]
    assert len(pictures) >= 6
    left = {path.name for path in (tmp_path / "example_run").iterdir()}
    assert {"results", "images", "run", "before", "after"} <= left


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def data(output: Any) -> Any:
    return output.get("data", {})


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_none_or_those_of_one_clean_run(name: str, repository: Path) -> None:
    path = repository / "examples" / f"{name}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    counts, outputs = [cell["execution_count"] for cell in cells], [o for cell in cells for o in cell["outputs"]]
    if set(counts) == {None}:
        assert outputs == []
        return
    assert counts == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/jpeg" in data(output) for output in outputs) >= 2
    assert path.stat().st_size < 500_000
    texts = ["".join(output.get("text", "")) + "".join(data(output).get("text/plain", "")) for output in outputs]
    assert not re.search(r"/(home|root|tmp|work|Users)/|\x1b", "\n".join(texts))
