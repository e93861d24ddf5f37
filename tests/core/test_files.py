"""Files and folders are replaced whole or stay as they were, and nothing else is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinocell.core.files import AtomicFile, AtomicFolder, atomic_write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    atomic_write_text(file, "old")
    with AtomicFile(file) as temporary:
        temporary.write_text("µ")
        assert file.read_text() == "old"
    assert file.read_text() == "µ" and names(file.parent) == {"a.json"}


@pytest.mark.parametrize("durable", [True, False])
def test_only_durable_files_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    atomic_write_text(tmp_path / "a", "text", durable=durable)
    assert len(flushed) == durable and (tmp_path / "a").read_text() == "text"


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), AtomicFile(tmp_path / "a") as temporary:
        temporary.write_text("ha")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == {"a"}


def test_a_folder_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    for name in ("first", "second"):
        with AtomicFolder(folder) as temporary:
            (temporary / name).touch()
        assert names(folder) == {name} and names(folder.parent) == {"model"}


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "model") as temporary:
        (temporary / "old").touch()
    with pytest.raises(OSError, match="full"), AtomicFolder(tmp_path / "model") as temporary:
        (temporary / "half").touch()
        raise OSError("full")
    assert names(tmp_path) == {"model"} and names(tmp_path / "model") == {"old"}


def test_what_a_killed_process_left_is_not_part_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / f".model.{os.getpid()}.tmp" / "half").mkdir(parents=True)
    with AtomicFolder(tmp_path / "model") as temporary:
        (temporary / "whole").touch()
    assert names(tmp_path / "model") == {"whole"}
