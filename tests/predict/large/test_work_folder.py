"""A run on a large image that is killed goes on where it was, and finds what an undisturbed run finds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from dinocell.core.errors import DataError
from dinocell.datasets.synthetic.sample import make_image
from dinocell.labels.files import read_labels
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig
from dinocell.predict.large.work_folder import KeptScratch
from dinocell.predict.windows import starts
from dinocell.segmentation import Segmenter, large_image, run

MODEL = ModelCard(crop_size=64, overlap=24, objective=ObjectiveConfig(kind="semantic"))
KILLED = """
import sys, time
from pathlib import Path
from torch import nn
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import Segmenter, large_image, run

stage, folder = sys.argv[1:]
large_image.BLOCK = 100

class Slow(nn.Module):
    def forward(self, z):
        if stage == "network":
            time.sleep(0.05)
        return 20 * (z - 0.5)

def hang(stages):
    for done, found in enumerate(stages):
        if done == 3:
            time.sleep(600)
        yield found

if stage == "decoding":
    decode = large_image.decode_blocks
    large_image.decode_blocks = lambda *a, **k: hang(decode(*a, **k))
card = ModelCard(crop_size=64, overlap=24, objective=ObjectiveConfig(kind="semantic"))
segmenter = Segmenter(Slow(), card, device="cpu", precision="float32")
segmenter.large_pixels = 1000
run([Path(folder) / "field.tif"], Path(folder) / "out", segmenter)
"""


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.windows += len(z)
        return 20 * (z - 0.5)


def large_segmenter() -> Segmenter:
    segmenter = Segmenter(Counting(), MODEL, device="cpu", precision="float32")
    segmenter.large_pixels = 1000
    return segmenter


def kill_when(process: subprocess.Popen[bytes], state: Path, stage: str, least: int) -> None:
    """Kill -9 as soon as the record on disk says that `least` steps of a stage are done."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if state.is_file() and json.loads(state.read_text()).get(stage, 0) >= least:
            break
        time.sleep(0.01)
    assert process.poll() is None and time.monotonic() < deadline, "the run ended, or did not get that far"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(("stage", "least"), [("network", 2), ("decoding", 2)])
def test_a_killed_run_goes_on_where_it_was(
    stage: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = make_image(1, 400, "fluorescence")
    tifffile.imwrite(tmp_path / "field.tif", image)
    monkeypatch.setattr(large_image, "BLOCK", 100)
    expected = large_segmenter()
    run([tmp_path / "field.tif"], tmp_path / "undisturbed", expected)

    script = [sys.executable, "-c", KILLED, stage, str(tmp_path)]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "out" / ".field.partial"
    kill_when(process, partial / "state.json", stage, least)
    assert not (tmp_path / "out" / "field_labels.tif").exists() and partial.is_dir()

    # The key holds the weights: `Slow` has none, as `Counting`.
    segmenter = large_segmenter()
    run([tmp_path / "field.tif"], tmp_path / "out", segmenter)
    assert "resumes where an earlier run stopped" in capsys.readouterr().out
    rows = len(starts(400, 64, 24))
    assert segmenter.model.windows <= expected.model.windows * (rows - least) / rows
    assert (segmenter.model.windows == 0) == (stage == "decoding")
    labels = read_labels(tmp_path / "out" / "field_labels.tif")
    assert labels.max() > 5
    np.testing.assert_array_equal(labels, read_labels(tmp_path / "undisturbed" / "field_labels.tif"))
    assert not partial.exists(), "nothing is left of the work"


def test_work_of_another_image_model_or_option_is_thrown_away(tmp_path: Path) -> None:
    first = KeptScratch(tmp_path / "work", "one")
    array = first.array("maps", (10, 10), np.float32, "network")
    array[:] = 1
    first.commit(array, network=3)
    first.close(keep=True)
    other = KeptScratch(tmp_path / "work", "two")
    assert other.array("maps", (10, 10), np.float32, "network").max() == 0 and other.done("network") == 0
    other.commit(network=5)
    other.close(keep=True)
    again = KeptScratch(tmp_path / "work", "two")
    again.array("maps", (10, 10), np.float32, "network")
    assert again.done("network") == 5 and again.resumed
    again.array("labels", (3,), np.float32, "decoding")
    assert again.done("network") == 5, "what comes later has nothing to do with it"
    again.array("bands", (3,), np.float32, "network")
    assert again.done("network") == 0, "a file was missing"
    again.close()
    assert not (tmp_path / "work").exists()


def test_a_damaged_record_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "state.json").write_text("[1, 2")
    scratch = KeptScratch(tmp_path / "work", "one")
    assert not scratch.resumed and scratch.done("network") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_runs_do_not_share_the_work(tmp_path: Path) -> None:
    first = KeptScratch(tmp_path / "work", "one")
    with pytest.raises(DataError, match="another run is working on this image"):
        KeptScratch(tmp_path / "work", "one")
    first.close()
    KeptScratch(tmp_path / "work", "one").close()


def test_a_failure_while_writing_keeps_the_work(tmp_path: Path) -> None:
    image, _ = make_image(1, 200, "fluorescence")
    tifffile.imwrite(tmp_path / "field.tif", image)
    (tmp_path / "out" / "field_labels.tif").mkdir(parents=True)
    assert run([tmp_path / "field.tif"], tmp_path / "out", large_segmenter()).exit_code == 1
    (tmp_path / "out" / "field_labels.tif").rmdir()
    segmenter = large_segmenter()
    assert run([tmp_path / "field.tif"], tmp_path / "out", segmenter).exit_code == 0
    assert segmenter.model.windows == 0 and not (tmp_path / "out" / ".field.partial").exists()
