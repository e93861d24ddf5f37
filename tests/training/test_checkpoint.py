"""Checkpoints: damaged ones are passed over, unreadable ones named, signals noticed, generators restored."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dinocell.core import files
from dinocell.core.errors import CheckpointError
from dinocell.training import checkpoint
from dinocell.training.rng import rng_state, set_rng_state
from dinocell.training.signals import EarlySignal, StopSignal


def state(value: float) -> dict[str, object]:
    return {"weights": torch.full((1000,), float(value)), "name": "run", "numbers": [1, 2.5]}


def test_the_newest_is_loaded_and_old_ones_are_dropped(tmp_path: Path) -> None:
    manager = checkpoint.CheckpointManager(tmp_path, keep=2)
    for step in (5, 10, 15):
        manager.save(step, state(step))
    assert [p.name for p in manager.paths()] == ["step_00000010.pt", "step_00000015.pt"]
    loaded = manager.load_latest()
    assert loaded is not None and loaded[0] == 15
    torch.testing.assert_close(loaded[1]["weights"], torch.full((1000,), 15.0))


@pytest.mark.parametrize("damage", ["truncate", "flip", "no checksum"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = checkpoint.CheckpointManager(tmp_path, keep=3)
    manager.save(1, state(1))
    newest = manager.save(2, state(2))
    data = bytearray(newest.read_bytes())
    if damage == "truncate":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 255
        newest.write_bytes(data)
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    loaded = manager.load_latest()
    assert loaded is not None and loaded[0] == 1
    assert "step_00000002.pt" in capsys.readouterr().err


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.CheckpointManager(tmp_path / "absent").load_latest() is None


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_an_unreadable_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth") as caught:
        files.load_file(path)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_refused_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"weights": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        files.load_file(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_keeps_the_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = checkpoint.CheckpointManager(tmp_path)
    manager.save(1, state(1))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        manager.save(2, state(2))
    monkeypatch.undo()
    loaded = manager.load_latest()
    assert loaded is not None and loaded[0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001.pt", "step_00000001.pt.sha256"]


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = (random.random(), np.random.rand(), torch.rand(3).tolist())
    set_rng_state(files.load_file(tmp_path / "rng.pt"))
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_signal_is_noticed_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.name == number.name
    assert signal.getsignal(number) == before


def test_a_signal_before_the_loop_counts_once() -> None:
    before = signal.signal(signal.SIGTERM, EarlySignal())
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopSignal() as stop:
            assert stop.requested() and stop.name == "SIGTERM"
        with StopSignal() as again:
            assert not again.requested() and again.name == ""
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_are_noted_without_torch() -> None:
    code = "import sys, dinocell.training.signals, dinocell.cluster.job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_signals_while_saving_leave_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def disturbed(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(torch, "save", disturbed)
    manager = checkpoint.CheckpointManager(tmp_path)
    with StopSignal() as stop:
        manager.save(1, state(1))
        assert stop.received and stop.requested()
        manager.save(2, state(2))  # leaving, and signalled again
    assert stop.name == "SIGUSR2"  # whichever came last: it asks for another start
    loaded = manager.load_latest()
    assert loaded is not None and loaded[0] == 2


@pytest.mark.parametrize("crash", ["before the new file", "before the new checksum"])
def test_a_crash_while_a_checkpoint_is_replaced_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    manager = checkpoint.CheckpointManager(tmp_path)
    manager.save(1, state(1))
    write, writes = files.atomic_write_text, 0

    def dies(path: Path, text: str) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise KeyboardInterrupt
        write(path, text)
        if crash == "before the new file":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "atomic_write_text", dies)
    with pytest.raises(KeyboardInterrupt):
        manager.save(1, state(7))
    loaded = manager.load_latest()
    assert loaded is not None
    assert loaded[1]["weights"][0].item() == (1 if crash == "before the new file" else 7)
