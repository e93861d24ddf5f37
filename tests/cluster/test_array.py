"""What the tasks of an array and their merge do, for segmentation and evaluation with a model folder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dinocell.cli.stages import STAGES
from dinocell.cluster.array import Array
from dinocell.cluster.job import StageJob
from dinocell.core.errors import DataError
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    write_sample(folder / "sample", n_unlabelled=0, n_train=0, n_val=0, n_test=3, size=64, seed=4)
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1))
    network = SegmentationModel(backbone, DecoderConfig(neck_width=16), 3, 64, 64)
    save_model(folder / "tiny" / "model", network, ModelCard(crop_size=64))
    return folder


def run_array(stage: str, arguments: list[str], out: Path, count: int) -> int:
    """The tasks and the merge as jobs would run them; the merge is refused before the last task has finished."""
    array = Array.of(out, stage, arguments, count)
    array.begin()
    merge = StageJob(stage=STAGES[stage], arguments=arguments, directory=str(out), array=array)
    for index in range(count):
        with pytest.raises(DataError, match=f"{count - index} of {count} tasks have not finished"):
            merge._work()
        assert replace(merge, index=index)._work().exit_code == 0
    code = merge._work().exit_code
    assert array.missing() == list(range(count))  # merged and forgotten: the same command starts anew
    return code


def test_segmentation(sample: Path, tmp_path: Path) -> None:
    images = sample / "sample/labelled/test/images"
    model = str(sample / "tiny/model")
    arguments = [str(images), "--model", model, "--out", str(tmp_path), "--device", "cpu", "--save", "labels,csv"]
    assert run_array("segment", arguments, tmp_path, 2) == 0
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == sorted(path.name for path in images.iterdir())
    assert len(list(tmp_path.glob("*_labels.tif"))) == 3
    (images / "broken.png").write_bytes(b"no picture")
    try:
        assert run_array("segment", arguments, tmp_path, 2) == 1  # named in the summary, and in the exit code
    finally:
        (images / "broken.png").unlink()


def test_evaluation(sample: Path, tmp_path: Path) -> None:
    data, model = str(sample / "sample/labelled"), str(sample / "tiny/model")
    arguments = [model, data, "--out", str(tmp_path), "--device", "cpu", "--no-baseline"]
    assert run_array("evaluate", arguments, tmp_path, 2) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 3
    assert (tmp_path / "report.html").is_file()
