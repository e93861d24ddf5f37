"""`dinocell inspect` shows every dataset and says what looks wrong with it."""

import re

import cv2
import numpy as np
import pytest

from dinocell.cli import main
from dinocell.core.config import from_dict
from dinocell.core.errors import DataError
from dinocell.finetune import FinetuneConfig, inspect_datasets
from dinocell.finetune.data.inspect import flow_wheel

SMALL = {"crop_size": 64, "input_size": 64, "overlap": 16}


def test_page_of_good_data(disks_dataset, tmp_path, capsys):
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(disks_dataset), "--out", str(page), *(f"{k}={v}" for k, v in SMALL.items())])
    assert left.value.code == 0
    assert "disks: 6 images looked at, 64 × 64 px, 4 to 4 cells an image" in capsys.readouterr().out
    text = page.read_text()
    assert "Nothing, in the 6 images looked at" in text
    assert "6 · 2 · 0" in text and "4 – 4 – 4" in text  # images of each split, cells an image
    # eight overlays at most, one panel of crops, one wheel, and each chart in a light and a dark version
    assert len(re.findall(r"<img ", text)) >= 6 + 1 + 1 + 3
    assert "things to look into" in text


def test_problems_are_said_on_the_page_and_on_the_console(disks_dataset, tmp_path, capsys):
    root = tmp_path / "binary"
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True)
        for path in sorted((disks_dataset / "train" / kind).iterdir()):
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(
                str(root / "train" / kind / path.name), 255 * (image > 0).astype(np.uint8) if kind == "masks" else image
            )
    cv2.imwrite(str(root / "train" / "masks" / "0.png"), np.ones((9, 9), np.uint8))
    (root / "dataset.yaml").write_text("name: drawn\nfully_annotated: false\n")
    config = from_dict(FinetuneConfig, {**SMALL, "data": {"root": [str(root), str(disks_dataset)]}})
    text = inspect_datasets(config, tmp_path / "page.html").read_text()
    assert "drawn: the masks look binary" in text
    assert "the mask is 9 × 9 px but its image" in text
    assert "Loss weight: white 1" in text and "Every pixel has the same weight" in text
    assert "drawn: the masks look binary" in capsys.readouterr().err


def test_nothing_usable_is_an_error(disks_dataset, tmp_path):
    root = tmp_path / "bad"
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True)
        (root / "train" / kind / "a.png").write_bytes(b"no picture")
    config = from_dict(FinetuneConfig, {**SMALL, "data": {"root": [str(root)]}})
    with pytest.raises(DataError, match=r"none of the images can be used; the first reason: .*a.png"):
        inspect_datasets(config, tmp_path / "page.html")


def test_wheel_shows_flows_pointing_right_as_flows_to_the_right_are_coloured():
    from dinocell.report.colours import flow_colours

    wheel = flow_wheel(101)
    for flow, at in (((0.0, 1.0), (50, 90)), ((1.0, 0.0), (90, 50)), ((0.0, -1.0), (50, 10))):
        coloured = flow_colours(np.array(flow, np.float32).reshape(2, 1, 1))[0, 0]
        assert np.abs(wheel[at].astype(int) - coloured.astype(int)).max() <= 12
