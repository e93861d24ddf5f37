"""The suite itself: every test is able to fail, draws the same numbers in any order, and has one thread."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

RNG = np.random.default_rng(5)
Functions = dict[str, ast.FunctionDef]


def functions(source: str) -> Functions:
    return {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


def can_fail(function: ast.FunctionDef, known: Functions, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function asserts something: itself, by NumPy's or torch's assert_…, or by a helper of the same file."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "raises" or name.startswith("assert_"):
            return True
        called = known.get(name) if isinstance(node.func, ast.Name) else None
        if called is not None and name not in seen and can_fail(called, known, seen | {function.name}):
            return True
    return False


def cannot_fail(source: str) -> list[str]:
    known = functions(source)
    return [name for name, node in known.items() if name.startswith("test_") and not can_fail(node, known)]


def test_every_test_is_able_to_fail(repository: Path) -> None:
    files = sorted((repository / "tests").rglob("test_*.py"))
    assert len(files) > 50
    found = {f.name: idle for f in files if (idle := cannot_fail(f.read_text(encoding="utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    ("body", "idle"),
    [
        ("x = 1", True),
        ("helper()\n    silent()", False),
        ("silent()", True),
        ("with pytest.raises(ValueError):\n        x()", False),
        ("np.testing.assert_array_equal(1, 2)", False),
        ("product.check_dataset()", True),
    ],
)
def test_a_test_that_asserts_nothing_is_found(body: str, idle: bool) -> None:
    helpers = "def silent():\n    pass\n\ndef helper():\n    assert f()\n\n"
    assert cannot_fail(f"{helpers}def test_a():\n    {body}\n") == (["test_a"] if idle else [])


def test_a_process_has_one_thread() -> None:
    assert torch.get_num_threads() == cv2.getNumThreads() == 1


@pytest.mark.parametrize("turn", ["first", "second"])
def test_the_numbers_that_a_test_draws_do_not_depend_on_those_before_it(turn: str) -> None:
    drawn = random.random(), np.random.random(), float(torch.rand(())), RNG.random()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    again = random.random(), np.random.random(), float(torch.rand(())), np.random.default_rng(5).random()
    assert drawn == again, turn
