"""Labelled datasets: every image has its mask, splits do not overlap and do not change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import make_splits, open_dataset


def fill(folder: Path, stems: list[str]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            cv2.imwrite(str(folder / kind / f"{stem}.png"), np.zeros((8, 8), np.uint8))
    return folder


def stems_of(root: Path, split: str, **keywords: int) -> list[str]:
    return [item.stem for item in open_dataset(root, split, **keywords)]  # type: ignore[arg-type]


def test_a_flat_folder_is_split_80_10_10_once(tmp_path: Path) -> None:
    names = [f"im{number:03d}" for number in range(40)]
    fill(tmp_path, names)
    parts = {split: stems_of(tmp_path, split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [32, 4, 4]
    assert sorted(stem for part in parts.values() for stem in part) == names
    written = json.loads((tmp_path / "splits.json").read_text())
    assert {split: written[split] for split in parts} == parts
    assert stems_of(tmp_path, "test", seed=99) == parts["test"]  # what is written holds


def test_another_seed_splits_otherwise() -> None:
    names = [str(number) for number in range(100)]
    assert make_splits(names, 0) == make_splits(names[::-1], 0) != make_splits(names, 1)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_no_split_of_a_small_set_is_empty(count: int) -> None:
    assert all(make_splits([str(i) for i in range(count)], 0).values())


def test_val_is_carved_out_of_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", [f"{i:02d}" for i in range(20)])
    fill(tmp_path / "test", ["t"])
    train, val = stems_of(tmp_path, "train"), stems_of(tmp_path, "val")
    assert (len(train), len(val), stems_of(tmp_path, "test")) == (18, 2, ["t"])
    assert not set(train) & set(val)


def test_a_given_val_is_used(tmp_path: Path) -> None:
    fill(tmp_path / "train", ["a", "b"])
    fill(tmp_path / "val", ["c"])
    assert (stems_of(tmp_path, "train"), stems_of(tmp_path, "val")) == (["a", "b"], ["c"])
    with pytest.raises(ConfigError, match="no test split, only train, val"):
        open_dataset(tmp_path, "test")


def test_a_folder_of_data_sets_and_what_dataset_yaml_says(tmp_path: Path) -> None:
    fill(tmp_path / "b" / "test", ["1"])
    fill(tmp_path / "a" / "test", ["2"])
    (tmp_path / "a" / "dataset.yaml").write_text("name: Alpha\nmodality: phase\nfully_annotated: false\nlicence: MIT\n")
    items = open_dataset(tmp_path, "test")
    assert [(item.dataset.name, item.stem, item.dataset.fully_annotated) for item in items] == [
        ("Alpha", "2", False),
        ("b", "1", True),
    ]
    assert (items[0].dataset.modality, items[0].dataset.licence) == ("phase", "MIT")


def test_ignore_images_are_found(tmp_path: Path) -> None:
    fill(tmp_path / "test", ["a", "b"])
    (tmp_path / "test" / "ignore").mkdir()
    cv2.imwrite(str(tmp_path / "test" / "ignore" / "b.png"), np.zeros((8, 8), np.uint8))
    assert [item.ignore and item.ignore.name for item in open_dataset(tmp_path, "test")] == [None, "b.png"]


@pytest.mark.parametrize(("kind", "message"), [("masks", "without a mask"), ("images", "without an image")])
def test_lonely_files_are_errors_that_name_them(tmp_path: Path, kind: str, message: str) -> None:
    fill(tmp_path, ["a", "b"])
    (tmp_path / kind / "b.png").unlink()
    with pytest.raises(DataError, match=f"{message}.*'b'"):
        open_dataset(tmp_path, "train")


def test_two_files_of_one_stem_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a"])
    (tmp_path / "images" / "a.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png and a\.tif"):
        open_dataset(tmp_path, "train")


def test_a_stale_splits_file_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"])
    open_dataset(tmp_path, "train")
    fill(tmp_path, ["d"])
    with pytest.raises(DataError, match=r"'d'.*delete it"):
        open_dataset(tmp_path, "train")


def test_wrong_folders_and_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        open_dataset(tmp_path / "x", "train")
    with pytest.raises(ConfigError, match="neither images/ and masks/"):
        open_dataset(tmp_path, "train")
    with pytest.raises(ConfigError, match="train, val, test"):
        open_dataset(tmp_path, "valid")  # type: ignore[arg-type]
    fill(tmp_path / "test", ["a"])
    (tmp_path / "dataset.yaml").write_text("fully_annotated: perhaps\n")
    with pytest.raises(DataError, match="true or false, got 'perhaps'"):
        open_dataset(tmp_path, "test")


@pytest.mark.skipif("DINOCELL_REAL_DATA" not in os.environ, reason="needs the real images")
def test_real_data_sets_open() -> None:
    root = Path(os.environ["DINOCELL_REAL_DATA"]) / "labelled"
    counts = {
        (folder.name, split): len(open_dataset(folder, split))  # type: ignore[arg-type]
        for folder in sorted(root.iterdir())
        for split in ("train", "val", "test")
        if split != "test" or (folder / "test").is_dir()
    }
    assert min(counts.values()) > 0
    assert counts["usiigaci_phase", "test"] == 8
    assert counts["dsb2018_nuclei", "train"] + counts["dsb2018_nuclei", "val"] == 103
