"""What is printed and recorded: durations, rates, resumed metrics files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinocell.core import log
from dinocell.training.progress import RunLogger, read_metrics


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (200, "3 min 20 s"),
        (3600 * 5 + 420, "5 h 07 min"),
        (86400 * 2 + 4 * 3600, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert log.format_duration(seconds) == words


@pytest.mark.parametrize("rate", [7.07e-5, 1e-9, 3e-4])
def test_a_small_learning_rate_is_never_shown_as_zero(rate: float) -> None:
    assert float(log.format_number(rate)) == pytest.approx(rate, rel=0.01)


def test_a_resumed_run_holds_every_step_once(tmp_path: Path) -> None:
    first = RunLogger(tmp_path, 10, tensorboard=False)
    for step in range(1, 8):
        first.log(step, {"loss": 1.0 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "sp')  # killed while writing
    second = RunLogger(tmp_path, 10, tensorboard=False, resume_step=5)
    for step in range(6, 11):
        second.log(step, {"loss": 1.0 / step})
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))


def test_nan_is_valid_json(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, 1, tensorboard=False)
    logger.log(1, {"loss": float("nan")})
    logger.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "split": "train", "loss": None}]


def test_the_step_line_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = RunLogger(tmp_path, 400, tensorboard=False)
    logger.progress(12, {"loss": 3.21, "lr": 7.07e-5}, images_per_second=3.1, data_wait=0.02, mfu=0.31)
    logger.close()
    line = capsys.readouterr().out.strip()
    for part in ("step 12/400", "loss 3.21", "lr 7.07e-05", "3.1 images/s", "data wait 2%", "MFU 31%", "left"):
        assert part in line
    assert "\n" not in line


def test_progress_passes_everything_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(log.progress(range(5), "curating")) == [0, 1, 2, 3, 4]
    assert "curating: 5 images in" in capsys.readouterr().out
