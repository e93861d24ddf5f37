"""Folders of label images: what is paired, what is named as a problem, and what evaluation.json holds."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.core.errors import ConfigError, DataError
from dinocell.evaluation import format_table, score_folders
from dinocell.labels.files import write_labels
from dinocell.metrics import METRICS, macro_mean, pool, score_image
from dinocell.report.html import Report


def cells(shift: int = 0, count: int = 4, size: int = 64) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    for index in range(count):
        labels[4 + 14 * index : 14 + 14 * index, 10 + shift : 20 + shift] = index + 1
    return labels


def save(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".png":
        assert cv2.imwrite(str(path), labels.astype(np.uint16))
    else:
        write_labels(path, labels)
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    for name, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "truth" / f"{name}.png", cells(count=count))
    return tmp_path / "truth"


def test_pooled_and_macro_figures_are_those_of_the_images(truth: Path, tmp_path: Path) -> None:
    shifts = {"a": 0, "b": 2, "c": 6}
    counts = {"a": 4, "b": 1, "c": 3}
    for name, shift in shifts.items():
        save(tmp_path / "ours" / f"{name}_labels.tif", cells(shift))
    out = tmp_path / "scores" / "evaluation.json"
    summary = score_folders(truth, {"ours": tmp_path / "ours"}, None, out)
    scores = [score_image(cells(count=counts[name]), cells(shift)) for name, shift in shifts.items()]
    assert summary["images"] == 3
    assert summary["metrics"] == summary["metrics_pooled"] == pool(scores).metrics()
    assert summary["metrics_macro"] == macro_mean(scores)
    assert tuple(summary["metrics"]) == METRICS
    assert summary["metrics_ignore_masked"] == summary["metrics"]  # nothing is ignored
    assert summary["objects"]["count_error"] == 12 - 8
    assert json.loads(out.read_text()) == json.loads(json.dumps(summary))
    with (out.parent / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert [float(row["MMA"]) for row in rows] == pytest.approx([s.mma for s in scores], abs=1e-6)


@pytest.mark.parametrize(
    "name", ["{}.png", "{}.npy", "{}_labels.tif", "{}_masks.tiff", "{}_cp_masks.png", "{}_seg.tif"]
)
def test_what_tools_append_to_names_does_not_matter(truth: Path, tmp_path: Path, name: str) -> None:
    for stem, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "tool" / name.format(stem), cells(count=count))
    summary = score_folders(truth, {"tool": tmp_path / "tool"}, None, None)
    assert (summary["images"], summary["problems"]) == (3, [])
    assert set(summary["metrics"].values()) == {1.0}


def test_images_beside_their_masks_are_not_taken_for_masks(truth: Path, tmp_path: Path) -> None:
    for stem, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "tool" / f"{stem}.tif", np.full((64, 64), 500))
        save(tmp_path / "tool" / f"{stem}_cp_masks.tif", cells(count=count))
    summary = score_folders(truth, {"tool": tmp_path / "tool"}, None, None)
    assert summary["problems"] == []
    assert summary["metrics"]["MMA"] == 1


def test_a_segment_folder_with_overlays_and_seg_npy_has_no_problems(truth: Path, tmp_path: Path) -> None:
    for stem, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "tool" / f"{stem}_labels.tif", cells(count=count))
        save(tmp_path / "tool" / f"{stem}_overlay.png", cells(count=count))
        np.save(tmp_path / "tool" / f"{stem}_seg.npy", {"masks": cells(count=count)}, allow_pickle=True)  # type: ignore[arg-type]
    assert score_folders(truth, {"tool": tmp_path / "tool"}, None, None)["problems"] == []


def test_cellpose_seg_npy_is_read_and_a_pickle_that_runs_code_is_not(truth: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cellpose"
    folder.mkdir()
    content = {
        "masks": cells(count=4).astype(np.uint16),
        "diameter": np.float64(10),
        "filename": "a.png",
        "flows": [[]],
    }
    np.save(folder / "a_seg.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    np.save(folder / "b_seg.npy", {"masks": Path}, allow_pickle=True)  # type: ignore[arg-type]
    summary = score_folders(truth, {"cellpose": folder}, None, None)
    assert (summary["images"], summary["metrics"]["MMA"]) == (1, 1)
    assert any("b_seg.npy: it names pathlib" in line for line in summary["problems"])


def test_every_file_that_is_not_scored_is_named_and_the_others_are_scored(truth: Path, tmp_path: Path) -> None:
    save(truth / "field_04.png", cells())
    save(truth / "e.png", cells())
    tool = tmp_path / "tool"
    save(tool / "a.png", cells())  # right
    save(tool / "b.png", cells(size=100))  # another size
    (tool / "c.png").write_bytes(b"no image")  # unreadable
    save(tool / "field_4.png", cells())  # renamed
    summary = score_folders(truth, {"tool": tool}, None, tmp_path)
    assert summary["images"] == 1
    assert summary["images_with_labels"] == 5
    assert summary["metrics"]["SEG"] == 1
    problems = "\n".join(summary["problems"])
    assert "tool: b.png is 100 × 100 but b.png is 64 × 64" in problems
    assert "c.png" in problems
    assert "no file for e" in problems
    assert "no file for field_04 (renamed? 'field_4' has no label image)" in problems
    assert "field_4.png has no label image of that name" in problems
    assert "field_4.png has no label image" in (tmp_path / "report.html").read_text()


def test_a_folder_of_several_tools_outputs_is_said_to_be_one(truth: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tools"
    for name in ("ours", "baseline"):
        save(tool / name / "a_labels.tif", cells())
    save(tool / "b.png", cells())
    problems = score_folders(truth, {"tool": tool}, None, tmp_path)["problems"]
    assert any("several files for a (baseline/a_labels.tif, ours/a_labels.tif): name the folder" in p for p in problems)


def test_several_files_of_one_name_are_said(truth: Path, tmp_path: Path) -> None:
    for extension in ("tif", "png"):
        save(tmp_path / "tool" / f"a_labels.{extension}", cells())
    problems = score_folders(truth, {"tool": tmp_path / "tool"}, None, None)["problems"]
    assert "a: a_labels.tif is used, not a_labels.png (several files of that name)" in problems


def test_tools_are_compared_on_the_images_they_share(truth: Path, tmp_path: Path) -> None:
    """A tool that leaves out the image it fails on must not win by that."""
    for stem, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "all" / f"{stem}.png", cells(2 if stem != "c" else 9, count))
        if stem != "c":
            save(tmp_path / "some" / f"{stem}.png", cells(2, count))
    summary = score_folders(truth, {"all": tmp_path / "all", "some": tmp_path / "some"}, None, None)
    assert summary["predictions"]["some"]["metrics"]["MMA"] > summary["predictions"]["all"]["metrics"]["MMA"]
    assert summary["images_common_to_all"] == 2
    common = summary["predictions_on_common_images"]
    assert common["all"]["metrics"] == common["some"]["metrics"]


def test_differences_are_paired_over_the_images_that_both_tools_share(tmp_path: Path) -> None:
    shifts = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1, "f": 2}
    for name, shift in shifts.items():
        save(tmp_path / "truth" / f"{name}.png", cells())
        save(tmp_path / "worse" / f"{name}.png", cells(shift + 1))  # by a pixel in every image
        save(tmp_path / "same" / f"{name}.png", cells(shift))
        if name != "f":
            save(tmp_path / "ours" / f"{name}.png", cells(shift))
    tools = {name: tmp_path / name for name in ("ours", "worse", "same")}
    summary = score_folders(tmp_path / "truth", tools, None, tmp_path / "evaluation.json")
    worse, same = (summary["differences"][f"ours − {name}"] for name in ("worse", "same"))
    assert worse["images"] == same["images"] == 5
    assert all(same[mean][name] == [0.0, 0.0, 0.0] for mean in ("pooled", "macro") for name in METRICS)
    own, other = ([score_image(cells(), cells(s + by)) for n, s in shifts.items() if n != "f"] for by in (0, 1))
    value, low, high = worse["macro"]["MMA"]
    assert value == pytest.approx(macro_mean(own)["MMA"] - macro_mean(other)["MMA"])
    assert 0 < low <= value <= high  # better on each image, so in every resample
    assert f"ours − worse, 5 images, macro: SEG {worse['macro']['SEG'][0]:+.3f}" in format_table(summary)


def test_few_images_give_no_intervals(truth: Path, tmp_path: Path) -> None:
    for tool in ("ours", "theirs"):
        for name in "abc":
            save(tmp_path / tool / f"{name}.png", cells())
    tools = {tool: tmp_path / tool for tool in ("ours", "theirs")}
    assert score_folders(truth, tools, None, tmp_path / "evaluation.json")["differences"] == {}


def test_data_sets_in_sub_folders_are_scored_apart_and_together(tmp_path: Path) -> None:
    for dataset, shift in (("livecell", 0), ("yeast", 3)):
        save(tmp_path / "data" / dataset / "test" / "masks" / "x.png", cells())
        save(tmp_path / "data" / dataset / "test" / "images" / "x.png", cells() * 40)
        save(tmp_path / "ours" / dataset / "x_labels.tif", cells(shift))
    summary = score_folders(tmp_path / "data", {"ours": tmp_path / "ours"}, None, tmp_path)
    assert summary["problems"] == []
    assert summary["datasets"]["livecell"]["metrics"]["MMA"] == 1
    assert summary["datasets"]["yeast"]["metrics"]["MMA"] == pytest.approx(7 / 13)
    assert summary["images"] == 2
    assert summary["paper"]["livecell"]["DINOCell"] == {"MMA": 0.875, "SEG": 0.784, "DET": 0.926}
    assert "yeast" not in summary["paper"]
    table = format_table(summary)
    assert "published for LIVECell (livecell): SAMCell-LIVECell: MMA 0.834, SEG 0.744, DET 0.911" in table
    page = (tmp_path / "report.html").read_text()
    for words in ("0.926", "Worst images of ours", "Best images of ours", "yeast/x: MMA 0.538", "published"):
        assert words in page


def test_histograms_put_a_score_on_an_edge_into_the_bin_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shifts of 0, 2, 4 … of ten pixels: MMA 1, 0.667, 0.429, 0.25, 0.111; a perfect score is in the last bin."""
    drawn: dict[str, dict[str, dict[str, float]]] = {}
    monkeypatch.setattr(Report, "bars", lambda self, values, title, *_: drawn.update({title: values}))
    for index in range(5):
        save(tmp_path / "truth" / f"{index}.png", cells())
        save(tmp_path / "ours" / f"{index}.png", cells(shift=2 * index))
    score_folders(tmp_path / "truth", {"ours": tmp_path / "ours"}, None, tmp_path)
    filled = {low for low, count in drawn["MMA of each image"].items() if count["ours"] == 1}
    assert filled == {"0.9", "0.6", "0.4", "0.2", "0.1"}
    assert sum(count["ours"] for count in drawn["MMA of each image"].values()) == 5


def test_ignore_images_make_the_masked_scores_only(truth: Path, tmp_path: Path) -> None:
    for stem, count in (("a", 4), ("b", 1), ("c", 3)):
        save(tmp_path / "tool" / f"{stem}.png", cells(count=4))
        ignore = np.zeros((64, 64), np.uint8)
        ignore[4 + 14 * count :] = 255
        save(tmp_path / "ignore" / f"{stem}.png", ignore)
    summary = score_folders(truth, {"tool": tmp_path / "tool"}, tmp_path / "ignore", None)
    assert summary["metrics"]["SEG"] == 1
    assert summary["metrics"]["AP50"] == pytest.approx(8 / 12)
    assert summary["metrics_ignore_masked"]["AP50"] == summary["metrics_ignore_masked_macro"]["MMA"] == 1
    assert summary["ignored"] == {"ignore image": 3, "unlabelled pixels": 0}
    assert "ignore-masked" in format_table(summary)


def test_incomplete_truth_is_masked_by_what_is_labelled(tmp_path: Path) -> None:
    save(tmp_path / "data" / "test" / "masks" / "a.png", cells(count=2))
    (tmp_path / "data" / "dataset.yaml").write_text("name: sparse\nfully_annotated: false\n")
    save(tmp_path / "tool" / "a.png", cells(count=4))
    summary = score_folders(tmp_path / "data" / "test" / "masks", {"tool": tmp_path / "tool"}, None, None)
    assert list(summary["datasets"]) == ["sparse"]
    assert summary["metrics"]["AP50"] == pytest.approx(0.5)
    assert summary["metrics_ignore_masked"]["AP50"] == 1
    assert summary["ignored"]["unlabelled pixels"] == 1


def test_what_cannot_be_scored_at_all_is_one_clear_error(truth: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other" / "zzz.png", cells())
    with pytest.raises(ConfigError, match=r"labels: .*nowhere"):
        score_folders(tmp_path / "nowhere", {"x": truth}, None, None)
    with pytest.raises(ConfigError, match=r"x: .*nowhere"):
        score_folders(truth, {"x": tmp_path / "nowhere"}, None, None)
    with pytest.raises(DataError, match="x: no label image"):
        score_folders(truth, {"x": tmp_path / "empty"}, None, None)
    with pytest.raises(DataError, match="x: none of 3 images could be scored; first problem: x: no file for a"):
        score_folders(truth, {"x": tmp_path / "other"}, None, None)
    with pytest.raises(ConfigError, match="NAME=DIR"):
        score_folders(truth, {}, None, None)
