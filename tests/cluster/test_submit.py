"""What is submitted is what was asked for; a mistake is refused before anything is submitted."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from dinocell.cli.stages import STAGES
from dinocell.cluster import submit
from dinocell.cluster.array import Array
from dinocell.cluster.profile import Profile, failure_lines, submitit_parameters, take_profile
from dinocell.cluster.records import read_end, write_end
from dinocell.core.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    import cv2
    import numpy as np

    (tmp_path / "images").mkdir()
    for index in range(4):
        picture = np.random.default_rng(index).integers(0, 255, (96, 96), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), picture)
    return tmp_path / "images"


def curate(images: Path) -> list[str]:
    return ["curate", str(images), "--out", str(images.parent / "out"), "workers=1"]


def test_the_script_holds_what_the_profile_asks_for(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {
        "partition": "long",
        "constraint": "a100",
        "qos": "high",
        "mail_user": "someone@example.org",
        "gpus_per_node": "1",
        "gpu_type": "a100",
        "modules": "[cuda/12.4,gcc]",
        "venv": "/envs/dino cell",
        "container": "apptainer exec --nv image.sif",
        "extra": "{exclude: n7}",
    }
    profile = [f"profile.{key}={value}" for key, value in wanted.items()]
    assert submit.main(STAGES, [*curate(images), "--array", "3", "--dry-run", *profile]) == 0
    script = capsys.readouterr().out
    for line in (
        "#SBATCH --partition=long",
        "#SBATCH --constraint=a100",
        "#SBATCH --qos=high",
        "#SBATCH --mail-type=END,FAIL,REQUEUE",
        "#SBATCH --gpus-per-node=a100:1",
        "#SBATCH --exclude=n7",
        "#SBATCH --array=0-2%3",
        "module load cuda/12.4\nmodule load gcc\nsource '/envs/dino cell/bin/activate'",
        "--kill-on-bad-exit=1 apptainer exec --nv image.sif python -u -m submitit",
    ):
        assert line in script, line
    assert not (images.parent / "out").exists()  # nothing is left behind by looking


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--array", "0"], "number of tasks"),
        (["profile.tasks_per_node=2"], "one process"),
        (["profile.time_minutes=1", "profile.signal_delay_seconds=90"], "do not fit"),
        (["profile.conda=a", "profile.venv=b"], "choose one"),
        (["profile.gpus_per_node=8"], "tasks_per_node"),
        (["profile.partitoin=x"], "partition"),
        (["sise=3"], "size"),
    ],
)
def test_mistakes_are_refused_before_submission(images: Path, more: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        submit.main(STAGES, [*curate(images), "--dry-run", *more])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ssl", "--array", "2"], "arrays are for curate, segment, evaluate"),
        (["segment", "--model", "absent"], "segment:"),
        (["segment", "x.png", "--out", "o", "--model", "/absent"], "/absent"),
        (["evaluate", "model"], "dataset"),
    ],
)
def test_each_stage_checks_its_own_arguments(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        submit.main(STAGES, [*arguments, "--dry-run"])


def test_only_unfinished_tasks_are_left_and_the_merge_waits_for_them(tmp_path: Path) -> None:
    array = Array.of(tmp_path, "curate", ["images"], 4)
    array.begin()
    since = array.since
    for index in (0, 2):
        array.finish(index)
    again = Array.of(tmp_path, "curate", ["images"], 4)
    again.begin()
    assert again.missing() == [1, 3]
    assert again.since == since
    assert Array.of(tmp_path, "curate", ["images", "size=64"], 4).missing() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"2 of 4 tasks have not finished \(1, 3"):
        again.check_complete()
    array.finish(1), array.finish(3)
    again.check_complete()
    again.close()
    assert again.missing() == [0, 1, 2, 3]


def test_the_log_ends_with_the_ranks_that_failed_the_first_one_first(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    for rank, code, reason in ((2, 1, "DataError: the cause"), (0, 1, "gloo: connection\nclosed"), (1, 75, "stopped")):
        write_end(folder, "12", rank, code, reason)
    script = "\n".join(["(exit 3)", *failure_lines(str(folder))])
    done = subprocess.run(
        ["bash", "-c", script], env={"SLURM_JOB_ID": "12", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("rank 2 on ") and lines[0].endswith("DataError: the cause")
    assert lines[1].endswith("gloo: connection closed")
    end = read_end(folder, "12", 1)
    assert end is not None and end.code == 75
    assert read_end(folder, "13") is None


def test_an_interpreter_of_another_environment_is_called_by_name() -> None:
    assert Profile(conda="cells").python_command() == "python"
    assert (
        Profile(container="singularity run x.sif", python="python3").python_command() == "singularity run x.sif python3"
    )
    assert Profile(setup=("source x",)).python_command().endswith("python")


def guide_commands(repository: Path) -> list[list[str]]:
    text = (repository / "docs/cluster.md").read_text() + (repository / "slurm/README.md").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    return [
        shlex.split(line)[2:] for line in lines if line.startswith("python slurm/submit.py ") and "--help" not in line
    ]


def test_every_command_of_the_guides_would_be_submitted(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr("dinocell.segmentation.image_files", lambda inputs: list(inputs))
    monkeypatch.setattr("dinocell.models.packaged.find_model", lambda model: model)
    commands = guide_commands(repository)
    assert {command[0] for command in commands} == set(STAGES)
    for command in commands:
        assert submit.main(STAGES, [*command, "--dry-run"]) == 0
        assert "srun" in capsys.readouterr().out


def test_the_profile_of_the_guide_and_the_shipped_ones_load(repository: Path, tmp_path: Path) -> None:
    guide = (repository / "docs/cluster.md").read_text()
    (tmp_path / "guide.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    shipped = sorted((repository / "slurm/profiles").glob("*.yaml"))
    assert shipped
    for path in (tmp_path / "guide.yaml", *shipped):
        profile, rest = take_profile(["--profile", str(path)])
        assert rest == []
        assert submitit_parameters(profile)["time"] == profile.time_minutes
