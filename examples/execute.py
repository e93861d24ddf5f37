"""Run the notebooks and store their outputs in them: `python examples/execute.py [NOTEBOOK …]` (extra: test).

The outputs hold no paths of this machine: the notebooks work in a folder `example_run` beside them, which is removed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def execute(path: Path, where: Path = HERE) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in the folder `where`; raises CellExecutionError at the first error."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ |= {"NO_COLOR": "1", "TERM": "dumb"}  # no colour codes in what is stored
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(where)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def main() -> None:
    """Execute the notebooks named, or all of them."""
    shutil.rmtree(HERE / "example_run", ignore_errors=True)
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        nbformat.write(execute(path), path)
    shutil.rmtree(HERE / "example_run")


if __name__ == "__main__":
    main()
