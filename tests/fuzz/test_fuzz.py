"""Hundreds of damaged files through every reader and command; `fuzz.py` beside this runs as many as one likes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CASES = {"read": 160, "labels": 60, "seg_npy": 60, "weights": 30, "prepare": 24, "curate": 10, "segment": 12}
MORE = 10
"""Times the cases above, of the slow tests."""


@pytest.fixture(scope="module")
def targets() -> Any:
    """tests/fuzz/targets.py, which is written to run as a script too."""
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    try:
        import targets
    finally:
        sys.path.remove(here)
    return targets


@pytest.fixture(scope="module")
def bench(targets: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    targets.write_corpus(folder / "corpus")
    targets.write_models(folder / "models")
    return targets.Bench([folder / "corpus"], folder / "models", folder / "scratch", seed=7)


def check_cases(bench: Any, name: str, cases: range) -> None:
    ends = [bench.run(name, number) for number in cases]  # raises what is neither read nor refused
    if name in ("read", "labels", "weights"):
        assert any(end != "read" for end in ends)  # or nothing was damaged


@pytest.mark.parametrize("name", CASES)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, bench: Any) -> None:
    check_cases(bench, name, range(CASES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_more_damaged_files_are_read_or_refused_in_one_line(name: str, bench: Any) -> None:
    check_cases(bench, name, range(CASES[name], MORE * CASES[name]))


def test_the_bench_notices_a_reader_that_lets_an_error_through(
    bench: Any, targets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise IndexError(f"{path.name}: list index out of range")

    monkeypatch.setattr(targets, "read_series", broken)
    with pytest.raises(IndexError):
        bench.run("read", 0)


def test_the_bench_notices_words_that_help_nobody(targets: ModuleType) -> None:
    with pytest.raises(targets.Finding, match="one clear line"):
        targets.check_words("first\nsecond")
    assert targets.TRANSLATED.match("IndexError: tuple index out of range")
    assert not targets.TRANSLATED.match("/data/a.png: cannot be decoded as PNG")


def test_the_same_number_is_the_same_case(bench: Any) -> None:
    def files() -> dict[str, bytes]:
        bench.run("read", 11)
        return {path.name: path.read_bytes() for path in bench.scratch.iterdir()}

    assert files() == files()
