"""Whatever a command line accepts, its job accepts: both read it with the same spec."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell import cli
from dinocell.cli.stages import STAGES
from dinocell.cluster import submit
from dinocell.cluster.job import StageJob
from dinocell.core.errors import ConfigError
from dinocell.labels.files import read_labels

LINES: dict[str, list[str]] = {
    "ssl": ["--compile", "--print-config", "data.root=[a,b]", "output_dir=o", "optim.epoch_steps=3"],
    "finetune": ["--auto-batch", "data.root=day=1", "output_dir=2024_01", "train.lr=1e-3"],
    "curate": ["dose=high.png", "--out", "007", "--size", "64", "--crops-per-image=2", "filters.min_side=9", "--merge"],
    "segment": [
        *("dose=high.png", "--out", "o", "--diameter", "30", "--save", "labels,csv", "--channel", "1", "--z", "best"),
        *("--pixel-size", "0.5", "--threshold=0.4", "--min-size", "9", "--flow-error", "0", "--views", "2"),
        *("--batch-size", "3", "--axes", "CZYX", "--device", "cpu", "--skip-existing"),
    ],
    "evaluate": ["cells", "data", "--split", "val", "--views", "4", "--no-baseline", "--out", "o", "--device", "cpu"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:120, :120]
    cv2.imwrite("dose=high.png", np.where((y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 < 150, 200, 20).astype(np.uint8))
    return tmp_path


def test_every_stage_has_its_line() -> None:
    assert set(LINES) == set(STAGES)


@pytest.mark.parametrize("stage", LINES)
def test_what_a_dry_run_accepts_the_job_reads_alike_on_another_machine(
    stage: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word for word in LINES[stage] if word != "--print-config"]
    assert submit.main(STAGES, [stage, *arguments, "--dry-run"]) == 0
    assert "srun" in capsys.readouterr().out
    job = StageJob(stage=STAGES[stage], arguments=arguments, directory=str(here))
    (here / "job.pkl").write_bytes(pickle.dumps(job))
    code = "import pickle, sys; job = pickle.load(open('job.pkl', 'rb')); print('torch' in sys.modules)\n"
    code += "print(repr(job.stage.parse(job.arguments)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, settings = done.stdout.strip().split("\n", 1)
    assert heavy == "False", "signals that come while torch is imported would be lost"
    assert settings == repr(STAGES[stage].parse(arguments))


def test_the_job_of_segment_segments_as_the_command_does(here: Path) -> None:
    arguments = ["dose=high.png", "--diameter", "30", "--save", "labels", "--device", "cpu"]
    job = StageJob(stage=STAGES["segment"], arguments=[*arguments, "--out", "job"], directory=str(here))
    assert job._work().exit_code == 0
    with pytest.raises(SystemExit) as left:
        cli.main(["segment", *arguments, "--out", "command"])
    assert not left.value.code
    labels = [read_labels(Path(folder) / "dose=high_labels.tif") for folder in ("job", "command")]
    assert labels[0].max() > 0
    np.testing.assert_array_equal(labels[0], labels[1])


def test_settings_are_printed_for_every_stage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(STAGES, ["segment", *LINES["segment"], "--print-config"]) == 0
    assert "diameter: 30.0" in capsys.readouterr().out
    assert submit.main(STAGES, ["ssl", *LINES["ssl"]]) == 0
    assert "compile: true" in capsys.readouterr().out
    assert not (here / "o").exists()


def test_label_images_are_scored_by_one_job(here: Path) -> None:
    folders = ["evaluate", "--labels", "a", "--predictions", "b", "--out", "o"]
    assert submit.main(STAGES, [*folders, "--dry-run"]) == 0
    with pytest.raises(ConfigError, match="--array: label images are scored by one process"):
        submit.main(STAGES, [*folders, "--array", "3", "--dry-run"])


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'sls' is not known; use one of ssl, finetune, .*did you mean 'ssl'"):
        submit.main(STAGES, ["sls"])
