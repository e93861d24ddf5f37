"""One line per error, that says something."""

from __future__ import annotations

import pytest

from dinocell.core.errors import DataError, first_line


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("  a\tb \nsecond"), "a b", "ValueError: a b"),
        (RuntimeError("\n\n third\n"), "third", "RuntimeError: third"),
        (RuntimeError("Error(s) in Model:\n\tsize mismatch\n\tanother"), "Error(s) in Model: size mismatch", None),
        (KeyError("points"), "'points'", "KeyError: 'points'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", None),
        (MemoryError(), "MemoryError", "MemoryError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (ValueError("\x1b[31mred"), "?[31mred", "ValueError: ?[31mred"),
        (ValueError("x" * 999), "x" * 200, "ValueError: " + "x" * 200),
        (DataError("a.tif: 0\nplanes; " + "x" * 300), "a.tif: 0 planes; " + "x" * 300, "a.tif: 0 planes; " + "x" * 300),
        (DataError(), "DataError", "DataError"),
    ],
)
def test_errors_in_one_line(error: Exception, line: str, named: str | None) -> None:
    assert first_line(error) == line
    if named is not None:
        assert first_line(error, named=True) == named
