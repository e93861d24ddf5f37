"""A signal in the middle of a validation: the run leaves at once, and ends as if nothing had happened."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinocell.core.errors import EXIT_STOPPED
from dinocell.core.files import load_file
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.validate.validator import Validator
from dinocell.training.progress import read_metrics

Recipe = Callable[..., FinetuneConfig]


@pytest.fixture
def recipe(tiny: Recipe) -> Recipe:
    own = {
        "train": {"steps": 4, "batch_size": 2, "checkpoint_every": 100, "ema": 0.9},
        "validate": {"times": 2, "panels": 0},
    }
    return lambda root, out: tiny(root, out, own)


def rows(out: Path) -> list[dict[str, object]]:
    clocks = ("seconds", "images_per_second", "data_wait")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("moments", [(2,), (3, 4)])  # images of the val split, counted over the whole run
def test_a_signal_while_validating(
    disks_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, ...], recipe: Recipe
) -> None:
    whole = run(recipe(disks_dataset, tmp_path / "whole")).folder
    seen = 0
    score = Validator._one

    def disturbed(self: Validator, *arguments: object) -> object:
        nonlocal seen
        seen += 1
        if seen in moments:
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGTERM)  # twice, and the one that asks for another start counts
        return score(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Validator, "_one", disturbed)
    starts = 0
    while not (tmp_path / "cut" / "report.html").is_file():
        outcome = run(recipe(disks_dataset, tmp_path / "cut"))
        cut = outcome.folder
        starts += 1
        assert starts < 9
        assert outcome.stopped_by == ("" if (cut / "report.html").is_file() else "SIGUSR2")
        assert outcome.exit_code == (EXIT_STOPPED if outcome.stopped_by else 0)
    assert outcome.step == 4
    assert starts > 1
    assert rows(cut) == rows(whole)
    states = [load_file(out / "checkpoints" / "step_00000004.pt") for out in (whole, cut)]
    for name, weights in states[0]["model"].items():
        assert torch.equal(weights, states[1]["model"][name]), name
    assert states[0]["best"] == states[1]["best"]
