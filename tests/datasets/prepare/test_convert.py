"""Every published layout becomes images and label images of the same cells, and what is odd is refused by name."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from dinocell.cli.train.prepare import BUILT_IN, parse
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import open_dataset
from dinocell.datasets.prepare.cellpose import read_seg_masks
from dinocell.datasets.prepare.coco import decode_rle, draw
from dinocell.datasets.prepare.convert import prepare
from dinocell.labels.files import read_labels

PRESETS = Path(__file__).parents[3] / "data_curation" / "configs"
RNG = np.random.default_rng(4)


def cells() -> np.ndarray:
    """Labels (60, 80) of three cells that do not touch, and one that lies at the rim."""
    labels = np.zeros((60, 80), np.int32)
    labels[5:20, 5:25], labels[30:50, 10:30], labels[10:40, 40:60], labels[50:60, 60:80] = 1, 2, 3, 4
    return labels


def picture() -> np.ndarray:
    return (RNG.normal(40, 5, (60, 80)) + (cells() > 0) * 100).clip(0, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array)
    else:
        cv2.imwrite(str(path), array)


def run(name: str, src: Path, *more: str) -> tuple[Path, list[dict[str, str]]]:
    out = src.parent / "prepared"
    config = parse([name, str(src), "--out", str(out), *more])
    prepare(config)
    with (out / "prepare_report.csv").open() as file:
        return out, list(csv.DictReader(file))


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """The objects as sets of pixels: what does not change when labels are renumbered."""
    return {frozenset(np.flatnonzero(labels == number).tolist()) for number in np.unique(labels) if number}


def check(out: Path, split: str, count: int) -> None:
    items = open_dataset(out, split)  # type: ignore[arg-type]
    assert len(items) == count
    for item in items:
        labels = read_labels(item.mask)
        assert partition(labels) == partition(cells())
        assert set(np.unique(labels)) == {0, 1, 2, 3, 4}


LAYOUTS = {
    "cellpose_cyto": [("train/000_img.png", "train/000_masks.png"), ("test/000_img.png", "test/000_masks.png")],
    "neurips2022": [
        ("Training-labeled/images/cell_00001.png", "Training-labeled/labels/cell_00001_label.tiff"),
        ("Tuning/images/cell_00001.bmp", "Tuning/labels/cell_00001_label.tiff"),
        ("Testing/Public/images/OpenTest_001.tif", "Testing/Public/labels/OpenTest_001_label.tiff"),
    ],
    "omnipose_bact_phase": [
        ("bact_phase/train_sorted/caulo/a.tif", "bact_phase/train_sorted/caulo/a_masks.tif"),
        ("bact_phase/test_sorted/caulo/a.tif", "bact_phase/test_sorted/caulo/a_masks.tif"),
    ],
    "omnipose_worm": [("worm/train/w.png", "worm/train/w_masks.png"), ("worm/test/w.png", "worm/test/w_masks.png")],
    "omnipose_worm_high_res": [
        ("worm_high_res/train/w.png", "worm_high_res/train/w_masks.tif"),
        ("worm_high_res/test/w.png", "worm_high_res/test/w_masks.tif"),
    ],
    "deepbacs_saureus": [
        ("training/source/a.tif", "training/target/a.tif"),
        ("test/source/a.tif", "test/target/a.tif"),
    ],
    "deepbacs_ecoli_bf": [("train/source/a.tif", "train/target/a.tif"), ("test/source/a.tif", "test/target/a.tif")],
    "deepbacs_ecoli_phase": [
        ("training/source/a.tif", "training/target/a.tif"),
        ("test/source/b.tif", "test/target/b.tif"),
    ],
    "pbl_hek": [("images/a.png", "masks/a.png")],
    "pbl_n2a": [("images/a.png", "masks/a.png")],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_image_and_mask_layouts(tmp_path: Path, name: str) -> None:
    src = tmp_path / "src"
    for image, mask in LAYOUTS[name]:
        save(src / image, picture())
        save(src / mask, (cells() * 3).astype(np.uint16))
        if name.startswith("omnipose"):
            save((src / image).with_name(Path(image).stem + "_flows.tif"), picture())
    out, report = run(name, src)
    assert [row["status"] for row in report] == ["done"] * len(LAYOUTS[name])
    masks = [read_labels(file) for file in out.rglob("masks/*.tif")]
    assert [partition(labels) for labels in masks] == [partition(cells())] * len(LAYOUTS[name])
    assert len(open_dataset(out, "test")) == 1
    info = yaml.safe_load((out / "dataset.yaml").read_text())
    assert info["source"] != "unknown" and info["licence"] and isinstance(info["fully_annotated"], bool)
    images = {path.stem: path for path in out.rglob("images/*")}
    assert set(images) == {path.stem for path in out.rglob("masks/*")}


def test_yeaz_without_splits_gets_80_10_10(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / "src" / "gold-standard-BF-V-1" / f"{number}_im.tif", picture())
        save(tmp_path / "src" / "gold-standard-BF-V-1" / f"{number}_mask.tif", cells().astype(np.uint16))
    out, _ = run("yeaz", tmp_path / "src")
    assert {
        name: len(stems) for name, stems in json.loads((out / "splits.json").read_text()).items() if name != "seed"
    } == {
        "train": 8,
        "val": 1,
        "test": 1,
    }
    check(out, "train", 8)


def test_bccd_foreground_masks_become_instances(tmp_path: Path) -> None:
    root = tmp_path / "src" / "BCCD Dataset with mask"
    for split in ("train", "test"):
        save(root / split / "original" / f"{split}.png", np.dstack([picture()] * 3))
        save(root / split / "mask" / f"{split}.png", np.dstack([(cells() > 0).astype(np.uint8) * 255] * 3))
    out, report = run("bccd", tmp_path / "src")
    assert [row["objects"] for row in report] == ["4"] * 2
    check(out, "train", 1)
    check(out, "test", 1)


def test_bbbc030_outlines_are_filled(tmp_path: Path) -> None:
    for number in range(3):
        outline = np.zeros((200, 260), np.uint8)
        cv2.circle(outline, (60, 70), 30, 255, 1)
        cv2.ellipse(outline, (170, 120), (50, 25), 20, 4, 360, 255, 1)  # not quite closed by hand
        save(tmp_path / "src" / "images" / f"{number}.png", np.dstack([RNG.integers(0, 255, outline.shape)] * 3))
        save(tmp_path / "src" / "ground_truth" / f"{number}.png", outline)
    out, report = run("bbbc030", tmp_path / "src")
    assert [row["objects"] for row in report] == ["2"] * 3
    labels = read_labels(out / "masks" / "0.tif")
    whole = np.zeros(labels.shape, np.uint8), np.zeros(labels.shape, np.uint8)
    cv2.circle(whole[0], (60, 70), 30, 1, -1)
    cv2.ellipse(whole[1], (170, 120), (50, 25), 20, 0, 360, 1, -1)
    for number, disk in zip((labels[70, 60], labels[120, 170]), whole, strict=True):
        assert ((labels == number) & (disk > 0)).sum() / ((labels == number) | (disk > 0)).sum() > 0.9


def test_ntera2_polygons(tmp_path: Path) -> None:
    corners = [polygon(cells() == number) for number in range(1, 5)]
    rois = [{"type": "polygon", "points": [points[i : i + 2] for i in range(0, 8, 2)]} for points in corners]
    for name in ("day11_1.tif", "day12_2.tif", "PXL_3.MP.tif"):
        save(tmp_path / "src" / "training_dataset" / name, np.dstack([picture()] * 3))
        roi = tmp_path / "src" / "roi_jsons_combined" / f"{name.split('.')[0]}_ROI.json"
        roi.parent.mkdir(exist_ok=True)
        roi.write_text(json.dumps(rois))
    out, report = run("ntera2", tmp_path / "src")
    assert [row["objects"] for row in report] == ["4"] * 3
    labels = read_labels(next(out.rglob("masks/*.tif")))
    assert all(labels[rows].any() for rows in (cells() == number for number in range(1, 5)))
    assert not labels[(cells() == 0) & (cv2.dilate((cells() > 0).astype(np.uint8), np.ones((3, 3))) == 0)].any()
    assert yaml.safe_load((out / "dataset.yaml").read_text())["fully_annotated"] is False


def test_tyc_keeps_cells_and_drops_traps(tmp_path: Path) -> None:
    numbers = np.where(cells() > 0, cells() * 100, 0)  # above 255: in two colour channels
    coded = np.zeros((60, 80, 3), np.uint8)
    coded[..., 2], coded[..., 1] = numbers % 256, numbers // 256  # cv2 writes B, G, R
    classes = {"annotations": [{"id": i, "category_id": int(i != 1)} for i in range(4)]}  # the second is a trap
    for split in ("train", "val", "test", "test_ood"):
        folder = tmp_path / "src" / "labeled_set" / split
        save(folder / "images" / f"{split}.tif", picture().astype(np.uint16) * 20)
        save(folder / "labels" / "masks" / f"{split}.png", coded)
        (folder / "labels" / "classes").mkdir()
        (folder / "labels" / "classes" / f"{split}.json").write_text(json.dumps(classes))
    out, report = run("tyc", tmp_path / "src")
    assert {row["split"]: row["notes"] for row in report if row["status"] == "done"} == dict.fromkeys(
        ("train", "val", "test"), "1 traps left out"
    )
    labels = read_labels(open_dataset(out, "val")[0].mask)
    assert partition(labels) == partition(np.where(cells() == 2, 0, cells()))


def test_idr0095_masks_belong_to_positions_of_one_file(tmp_path: Path) -> None:
    """The source's own files are ND2, which nothing here can write: an OME-TIFF of several positions stands in."""
    source = tmp_path / "src" / "Experiment_A_Figure3" / "strain1.ome.tif"
    source.parent.mkdir(parents=True)
    phase = [picture().astype(np.uint16) for _ in range(12)]
    with tifffile.TiffWriter(source, ome=True) as writer:
        for plane in phase:
            names = {"axes": "CYX", "Channel": {"Name": ["mCherry", "Phase"]}}
            writer.write(np.stack([plane * 0 + 7, plane]), metadata=names)
    for position in range(12):
        mask = np.where(cells() == position % 4 + 1, 0, cells())
        save(source.with_name("strain1") / f"xy{position + 1}-Mask.tif", mask.astype(np.uint16))
    out, report = run("idr0095", tmp_path / "src", "images='**/*.ome.tif'")
    assert [row["status"] for row in report] == ["done"] * 12
    for position in range(12):
        [image] = out.rglob(f"images/*_p{position:03d}.tif")
        np.testing.assert_array_equal(tifffile.imread(image), phase[position])
        labels = read_labels(image.parent.parent / "masks" / image.name)
        assert partition(labels) == partition(np.where(cells() == position % 4 + 1, 0, cells()))


def test_glioma_c6_takes_cells_and_leaves_nuclei(tmp_path: Path) -> None:
    for folder, name in (("spec/train", "anno_train"), ("spec/test", "anno_test"), ("gen", "anno_gen")):
        root = tmp_path / "src" / "dataset" / folder
        save(root / "images" / "1.tif", picture())  # the same file name in every folder
        shapes = [(cells() == number, 1) for number in range(1, 5)] + [(np.pad(np.ones((3, 3)), ((8, 49), (8, 69))), 2)]
        annotations = [
            {"id": k, "image_id": 1, "category_id": kind, "segmentation": [polygon(mask)], "iscrowd": 0}
            for k, (mask, kind) in enumerate(shapes)
        ]
        content = {
            "images": [{"id": 1, "file_name": "1.tif", "height": 60, "width": 80}],
            "categories": [
                {"id": 1, "name": "glioma", "supercategory": "cell"},
                {"id": 2, "name": "nucleus", "supercategory": "cell_part"},
            ],
            "annotations": annotations,
        }
        (root / f"{name}.json").write_text(json.dumps(content))
    out, report = run("glioma_c6", tmp_path / "src")
    assert [(row["split"], row["objects"]) for row in report] == [("test", "4")] * 3
    assert {row["file"] for row in report} == {
        f"dataset/{part}/images/1.tif" for part in ("spec/train", "spec/test", "gen")
    }
    assert len(open_dataset(out, "test")) == 3


def test_yeaz_phase_contrast_films_become_frames(tmp_path: Path) -> None:
    film = np.stack([picture() for _ in range(10)]).astype(np.uint16)
    masks = np.stack([np.where(cells() == frame % 4 + 1, 0, cells()) for frame in range(10)]).astype(np.uint16)
    folder = tmp_path / "src" / "gold-standard-PhC-plus-2"
    save(folder / "fov_im.tif", film)
    save(folder / "fov_mask.tif", masks)
    out, report = run("yeaz", tmp_path / "src")
    assert [row["status"] for row in report] == ["done"] * 10
    for frame in range(10):
        stem = f"fov_im_f{frame:03d}.tif"
        np.testing.assert_array_equal(tifffile.imread(out / "images" / stem), film[frame])
        assert partition(read_labels(out / "masks" / stem)) == partition(masks[frame])


def test_dsb2018(tmp_path: Path) -> None:
    for stem in ("aa", "bb", "cc"):
        folder = tmp_path / "src" / "stage1_train" / stem
        save(folder / "images" / f"{stem}.png", np.dstack([picture()] * 3 + [np.full((60, 80), 255, np.uint8)]))
        for number in range(1, 5):
            save(folder / "masks" / f"{number:02x}.png", (cells() == number).astype(np.uint8) * 255)
    out, _ = run("dsb2018_stage1", tmp_path / "src")
    check(out, "test", 1)


def test_cell_tracking_challenge_prefers_gold_truth(tmp_path: Path) -> None:
    src = tmp_path / "src" / "Fluo-N2DH-SIM+"
    for sequence in ("01", "02"):
        for frame in range(3):
            save(src / sequence / f"t{frame:03d}.tif", picture())
            save(src / f"{sequence}_ST" / "SEG" / f"man_seg{frame:03d}.tif", (cells() > 0).astype(np.uint16))
        save(src / f"{sequence}_GT" / "SEG" / "man_seg001.tif", cells().astype(np.uint16))
        save(src / f"{sequence}_GT" / "TRA" / "man_track000.tif", cells().astype(np.uint16))
    _, report = run("ctc", tmp_path / "src", "splits={train: '/01/', test: '/02/'}")
    assert [row["objects"] for row in report if row["split"] == "test"] == ["1", "4", "1"]
    assert len({row["stem"] for row in report}) == 6


def polygon(mask: np.ndarray) -> list[float]:
    """Corner polygon of a rectangle, as annotation tools export it."""
    ys, xs = np.nonzero(mask)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    changes = np.flatnonzero(np.diff(flat)) if mask.any() else np.array([], int)
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def compress(runs: list[int]) -> str:
    """COCO's text form of run lengths, written from its description."""
    text = ""
    for number, run_length in enumerate(runs):
        value = run_length - runs[number - 2] if number > 2 else run_length
        while True:
            part, value = value & 0x1F, value >> 5
            done = (value == 0 and not part & 0x10) or (value == -1 and bool(part & 0x10))
            text += chr((part if done else part | 0x20) + 48)
            if done:
                break
    return text


@pytest.mark.parametrize("form", ["polygon", "rle", "compressed"])
@pytest.mark.parametrize("as_mapping", [False, True])
def test_livecell_coco(tmp_path: Path, form: str, as_mapping: bool) -> None:
    for split, folder in (("train", "train_val"), ("val", "train_val"), ("test", "test")):
        name = f"A172_Phase_{split}.tif"
        save(tmp_path / "src" / "images" / f"livecell_{folder}_images" / name, picture())
        annotations = []
        for number in range(1, 5):
            mask = cells() == number
            rle = {"size": [60, 80], "counts": run_lengths(mask)}
            if form == "compressed":
                rle["counts"] = compress(run_lengths(mask))
            shape = [polygon(mask)] if form == "polygon" else rle
            annotations.append({"id": number, "image_id": 7, "segmentation": shape, "iscrowd": 0})
        listed = {str(a["id"]): a for a in annotations} if as_mapping else annotations
        content = {"images": [{"id": 7, "file_name": name, "height": 60, "width": 80}], "annotations": listed}
        (tmp_path / "src" / f"livecell_coco_{split}.json").write_text(json.dumps(content))
    out, _ = run("livecell", tmp_path / "src")
    for split in ("train", "val", "test"):
        if form == "polygon":  # rasterising may differ by the rim
            labels = read_labels(open_dataset(out, split)[0].mask)  # type: ignore[arg-type]
            for number in range(1, 5):
                overlap = max(
                    (labels[cells() == number] == k).sum() / ((labels == k) | (cells() == number)).sum()
                    for k in range(1, 5)
                )
                assert overlap > 0.85
        else:
            check(out, split, 1)


def test_known_rle_values() -> None:
    """A 3×3 mask worked out by hand, column by column: 0 0 1 | 1 0 0 | 0 0 1."""
    expected = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    assert (decode_rle({"size": [3, 3], "counts": [2, 2, 4, 1]}) == expected).all()
    assert (decode_rle({"size": [3, 3], "counts": "224O"}) == expected).all()
    with pytest.raises(DataError, match="RLE of 4 pixels"):
        decode_rle({"size": [3, 3], "counts": [2, 2]})


def test_polygon_area_is_that_of_the_outline() -> None:
    mask = draw([[10.0, 10.0, 50.0, 10.0, 50.0, 40.0, 10.0, 40.0]], (60, 80))
    assert mask[10:40, 10:50].all()
    assert mask.sum() <= 31 * 41


def test_coco_lists_missing_images(tmp_path: Path) -> None:
    save(tmp_path / "src" / "a.png", picture())
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": 60, "width": 80} for i, n in enumerate("ab")],
        "annotations": [],
    }
    (tmp_path / "src" / "x.json").write_text(json.dumps(content))
    _, report = run("coco", tmp_path / "src")
    assert {row["file"]: row["status"] for row in report} == {"a.png": "done", "b.png": "refused"}
    assert [row["notes"] for row in report if row["status"] == "done"] == ["no objects"]


def test_cellpose_seg_npy(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "src" / f"{number}.tif", picture())
        content = {"masks": cells().astype(np.uint16), "outlines": cells(), "filename": "x", "diameter": np.float64(3)}
        np.save(tmp_path / "src" / f"{number}_seg.npy", content, allow_pickle=True)
    out, _ = run("cellpose_seg", tmp_path / "src")
    check(out, "train", 1)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    np.save(tmp_path / "a_seg.npy", {"masks": Evil()}, allow_pickle=True)
    with pytest.raises(DataError, match="is not loaded"):
        read_seg_masks(tmp_path / "a_seg.npy")
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(1)) == 1


def test_bad_pairs_are_refused_with_their_reason(tmp_path: Path) -> None:
    src = tmp_path / "src"
    bad = {
        "size": cells()[:50],
        "picture": RNG.integers(0, 4000, (60, 80)),
        "binary": (cells() > 0) * 255,
    }
    for stem, mask in {"good": cells(), "empty": cells() * 0, **bad}.items():
        save(src / "images" / f"{stem}.png", picture())
        save(src / "masks" / f"{stem}.png", mask.astype(np.uint16))
    save(src / "images" / "lonely.png", picture())
    _, report = run("pairs", src)
    notes = {Path(row["file"]).stem: row["notes"] for row in report if row["status"] == "refused"}
    assert set(notes) == {"size", "picture", "binary", "lonely"}
    assert "50×80 px for an image of 60×80" in notes["size"]
    assert "looks like an image" in notes["picture"]
    assert "layout=binary" in notes["binary"]
    assert "no mask" in notes["lonely"]
    assert {row["stem"]: row["objects"] for row in report if row["status"] == "done"} == {"good": "4", "empty": "0"}


def test_overlaps_pieces_and_crumbs_are_noted(tmp_path: Path) -> None:
    labels = cells()
    labels[55, 5] = 1  # a crumb of cell 1
    for number in range(3):
        save(tmp_path / "src" / "images" / f"{number}.png", picture())
        save(tmp_path / "src" / "masks" / f"{number}.png", labels.astype(np.uint16))
    _, report = run("pairs", tmp_path / "src")
    assert {row["notes"] for row in report} == {"1 objects have several pieces"}
    src = tmp_path / "again" / "src"
    (tmp_path / "again").mkdir()
    (tmp_path / "src").rename(src)
    out, report = run("pairs", src, "split_components=true", "min_area=5")
    assert {row["notes"] for row in report} == {"1 objects under 5 px dropped"}
    check(out, "train", 1)


def test_presets_are_part_of_an_installed_package(tmp_path: Path) -> None:
    root = PRESETS.parents[1]
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=120)
    installed = tmp_path / "build" / "lib"
    command = [sys.executable, "-m", "dinocell", "prepare", "livecell", "src", "--out", "o", "--print-config"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert "LIVECell" in done.stdout, done.stderr
    copied = (installed / "dinocell" / "recipes" / "data_curation").glob("*.yaml")
    assert {file.name for file in copied} == {file.name for file in PRESETS.glob("*.yaml")}


def test_presets_are_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(["livecell", "src", "--out", "o"])
    assert (config.name, config.layout) == ("LIVECell", "coco")


def test_wrong_commands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format 'foo'"):
        parse(["foo", "src", "--out", "o"])
    with pytest.raises(ConfigError, match="FORMAT SRC --out DIR"):
        parse(["pairs", "src"])
    with pytest.raises(ConfigError, match="no such folder"):
        run("pairs", tmp_path / "nothing")
    save(tmp_path / "src" / "x.png", picture())
    with pytest.raises(ConfigError, match="nothing of layout 'pairs'"):
        run("pairs", tmp_path / "src")


@pytest.mark.parametrize(
    "name", [*BUILT_IN, *(file.stem for file in PRESETS.glob("*.yaml") if "\nlayout:" in file.read_text())]
)
def test_every_preset_is_complete(name: str) -> None:
    config = parse([name, "src", "--out", "o"])
    if name not in BUILT_IN:
        assert config.name and config.licence and config.citation
        assert config.source != "unknown"
