"""`dinocell segment` on real images of every layout: --axes, --channel and --z choose what they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dinocell import cli
from dinocell.images.gray.sharpness import best_focus
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import Segmenter

LAYOUTS = {  # file → what lies in it
    "qpi_float32/*.tif": "YX float32",
    "yeast_brightfield_ep/*.tif": "YX uint16",
    "bacteria_omnipose/*.tif": "YX uint16",
    "embl_training/xy_rgb__cells.tif": "YXS uint8",
    "embl_training/xyc_16bit__hela-cells.tif": "YXS uint16",
    "embl_training/xyc_16bit__nuclei_golgi.tif": "CYX uint16",
    "embl_training/xyc_8bit__cyto_nuclei.tif": "CYX uint8",
    "bioimage_notebooks/BPAE_actin_mito_nuclei.tif": "CYX uint16",
    "bioimage_notebooks/membrane_2d_timelapse.tif": "TYX uint16",
    "smear_bccd/*.jpg": "YXS uint8",
    "dsb2018_extra/*.png": "YXS uint8",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
    network = SegmentationModel(VisionTransformer(config), DecoderConfig(neck_width=16), 1, 256, 64)
    last = [module for module in network.decoder.heads.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        assert last.bias is not None
        last.bias -= network(torch.randn(1, 1, 256, 256)).mean()
    card = ModelCard(crop_size=256, objective=ObjectiveConfig(kind="semantic"))
    return save_model(tmp_path_factory.mktemp("model"), network, card)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def first(real_data: Path, pattern: str) -> Path:
    return next(iter(sorted((real_data / "unlabelled").glob(pattern))))


@pytest.mark.real_data
@pytest.mark.parametrize("pattern", LAYOUTS)
def test_every_layout_gives_labels_of_its_size(real_data: Path, pattern: str, model: Path, tmp_path: Path) -> None:
    file = first(real_data, pattern)
    image = read_image(file)
    assert f"{image.axes} {image.array.dtype}" == LAYOUTS[pattern]
    assert command("segment", file, "--out", tmp_path, "--model", model, "--save", "labels,csv", "--device", "cpu") == 0
    written = sorted(tmp_path.glob("*_labels.tif"))
    size = tuple(image.array.shape[image.axes.index(letter)] for letter in "YX")
    assert len(written) == (image.array.shape[0] if image.axes == "TYX" else 1)
    assert {read_labels(labels).shape for labels in written} == {size}
    count = sum(len(pd.read_csv(table)) for table in tmp_path.glob("*_cells.csv"))
    assert count == sum(len(np.unique(read_labels(labels))) - 1 for labels in written)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("pattern", "channel", "index"),
    [
        ("embl_training/xyc_16bit__nuclei_golgi.tif", "1", 1),
        ("bioimage_notebooks/BPAE_actin_mito_nuclei.tif", "c0", 0),
        ("smear_bccd/*.jpg", "green", 1),
        ("embl_training/xyc_16bit__hela-cells.tif", "2", 2),
    ],
)
def test_a_channel_is_that_channel(
    real_data: Path, pattern: str, channel: str, index: int, model: Path, tmp_path: Path
) -> None:
    file = first(real_data, pattern)
    options = ("--model", model, "--channel", channel, "--device", "cpu")
    assert command("segment", file, "--out", tmp_path, *options) == 0
    image = read_image(file)
    plane = np.take(image.array, index, axis=0 if image.axes == "CYX" else 2)
    expected = Segmenter(model, device="cpu").segment(plane).labels
    labels = read_labels(next(tmp_path.glob("*_labels.tif")))
    assert labels.max() > 0
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.real_data
def test_a_film_read_as_a_volume_or_as_channels(
    real_data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = first(real_data, "bioimage_notebooks/membrane_2d_timelapse.tif")
    stack = read_image(file).array
    segmenter = Segmenter(model, device="cpu")
    planes = {"best": stack[best_focus(stack)], "max": stack.max(0), "mean": np.rint(stack.mean(0)), "3": stack[3]}
    for z, plane in planes.items():
        out = tmp_path / z
        options = ("--model", model, "--axes", "ZYX", "--z", z, "--device", "cpu")
        assert command("segment", file, "--out", out, *options) == 0
        labels = read_labels(out / "membrane_2d_timelapse_labels.tif")
        np.testing.assert_array_equal(labels, segmenter.segment(plane.astype(np.uint16)).labels)
    options = ("--model", model, "--axes", "CYX", "--channel", "4", "--device", "cpu")
    assert command("segment", file, "--out", tmp_path / "c", *options) == 0
    labels = read_labels(tmp_path / "c" / "membrane_2d_timelapse_labels.tif")
    np.testing.assert_array_equal(labels, segmenter.segment(stack[4]).labels)
    capsys.readouterr()
    assert command("segment", file, "--out", tmp_path / "t", "--model", model, "--z", "best", "--device", "cpu") == 0
    assert len(list((tmp_path / "t").glob("*_labels.tif"))) == len(stack)
    assert "pass --axes ZYX" in " ".join(capsys.readouterr().err.split())


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--axes", "CYX", "--channel", "9"), "channel: no '9'; the image has 0 = c0"),
        (("--axes", "ZYX", "--z", "9"), "z: no depth 9; the stack has 5, 0 … 4"),
        (("--axes", "YX"), "axes=YX names 2 axes, the array has 3"),
        (("--z", "deep"), "z: 'deep' is not known"),
    ],
)
def test_what_is_not_there_is_one_line(
    real_data: Path,
    options: tuple[str, ...],
    said: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = first(real_data, "bioimage_notebooks/membrane_2d_timelapse.tif")
    assert command("segment", file, "--out", tmp_path, "--model", model, "--device", "cpu", *options) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.real_data
def test_the_device_and_its_reason_are_said(
    real_data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = first(real_data, "embl_training/xy_8bit__PCNA.tif")
    assert command("segment", file, "--out", tmp_path, "--model", model) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("device: "))
    chosen = Segmenter(model)
    number, runner = str(chosen.runner.dtype).removeprefix("torch."), chosen.runner
    assert line == f"device: {runner.device} ({chosen.device_reason}), {number} ({chosen.dtype_reason})"
