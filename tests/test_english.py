"""The rules of English that a program can check (CONTRIBUTING.md): first words of docstrings, one spelling per word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FIRST = re.compile(r"(What|Which|Where|Whether|How|Why|Who)\b")
SPELLINGS = {  # the other spelling → the one that this project uses
    r"\bgrey": "gray",
    r"\bdata sets?\b": "dataset",
    r"\binitialis": "initializ",
    r"\bstart(s|ed)? anew\b": "start over",
    r"\bone (row|line|file) a (cell|crop|step|image|job)\b": "per",
    r"\bµm a pixel\b": "µm per pixel",
}


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def test_docstrings_begin_with_a_verb_or_a_noun(repository: Path) -> None:
    found = [
        f"{file.relative_to(repository)}:{line} {text.splitlines()[0]}"
        for file in sorted((repository / "dinocell").rglob("*.py"))
        for line, text in docstrings(file)
        if FIRST.match(text)
    ]
    assert found == []


def test_one_spelling_per_word(repository: Path) -> None:
    files = [*(repository / "dinocell").rglob("*.py"), *repository.glob("*.md"), *(repository / "docs").glob("*.md")]
    for folder in ("ssl", "finetune", "data_curation", "slurm"):
        files += [*(repository / folder).rglob("*.md"), *(repository / folder).rglob("*.yaml")]
    found = []
    for file in sorted(files):
        if file.name in ("CHANGELOG.md", "CONTRIBUTING.md"):  # history, and the page that quotes the wrong words
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found += [
                f"{file.relative_to(repository)}:{number} {w}" for p, w in SPELLINGS.items() if re.search(p, line)
            ]
    assert found == []
