"""benchmarks/results.py: label subsets, tables of known answer, and that what is finished is not done again."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from dinocell.data import synthetic
from dinocell.data.baseline import otsu_watershed
from dinocell.data.io import read_image, read_labels, to_gray
from dinocell.data.labelled import open_dataset
from dinocell.errors import ConfigError
from dinocell.metrics import ImageScores, score_image


@pytest.fixture(scope="module")
def bench(repository: Path) -> Iterator[Any]:
    """The modules of benchmarks/, which are scripts beside each other and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        names = ("results", "results_cells", "results_page", "results_tables")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def scored(good: int, of: int = 10) -> ImageScores:
    """`of` equal cells, of which `good` are found exactly and the others not at all."""
    truth = np.zeros((of, 200), np.int32)
    truth[:, :100] = np.arange(1, of + 1)[:, None]
    return score_image(truth, np.where(truth <= good, truth, 0))


def result(bench: Any, method: str, good: list[int], seed: int = 0, fraction: float = 100, **more: Any) -> Any:
    facts = {"train_images": 7, "curve": [[10, 0.2], [20, 0.4]], "run": "absent", "seconds_per_image": 0.5}
    values = {
        "part": "ablation",
        "method": method,
        "dataset": "cells",
        "fraction": fraction,
        "seed": seed,
        "budget": 20,
        "images": [f"image{i}" for i in range(len(good))],
        "scores": [scored(g) for g in good],
        "facts": facts,
    }
    return bench.results_cells.Result(**{**values, **more})


def test_subsets_are_nested_hold_at_least_one_image_and_depend_on_the_seed(bench: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split, count in {"train": 30, "val": 4, "test": 2}.items():
        for number in range(count):
            for kind in ("images", "masks"):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / split / kind / f"{split}{number}.png"), np.full((8, 8), number, np.uint8))
    stems: dict[tuple[int, float, str], set[str]] = {}
    for seed in (0, 1):
        for percent in (1, 25, 100):
            out = tmp_path / f"{seed}_{percent}"
            for _ in range(2):  # a second call changes nothing
                folders = bench.results_cells.write_subset([root], percent, seed, out)
            for split in ("train", "val"):
                stems[seed, percent, split] = {item.stem for item in open_dataset(folders[0], split)}
    for seed in (0, 1):
        assert [len(stems[seed, p, "train"]) for p in (1, 25, 100)] == [1, 8, 30]
        assert [len(stems[seed, p, "val"]) for p in (1, 25, 100)] == [1, 1, 4]
        for split in ("train", "val"):
            assert stems[seed, 1, split] <= stems[seed, 25, split] <= stems[seed, 100, split]
    assert stems[0, 25, "train"] != stems[1, 25, "train"]
    with pytest.raises(ConfigError, match="no test split"):
        open_dataset(tmp_path / "0_1" / "data", "test")


def test_a_finished_part_is_read_not_made(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "cells" / "one.json"
    made = bench.results_cells.once(file, lambda: [result(bench, "random", [1, 2])])
    again = bench.results_cells.once(file, lambda: pytest.fail("made twice"))
    assert again == made


def test_differences_are_paired_and_said_in_words(bench: Any) -> None:
    low, high = [1, 8, 2, 7, 3, 6], [2, 9, 3, 8, 4, 7]
    rows = [result(bench, "random", low, seed=s) for s in (0, 1)]
    rows += [result(bench, "stage1", high, seed=s) for s in (0, 1)]
    rows += [result(bench, "random", low, fraction=5), result(bench, "stage1", low, fraction=5)]
    found = bench.results_tables.difference_rows(rows, "random")
    assert found[0][:3] == ["5 %", "stage1 − random", "+0.000 [+0.000, +0.000]"]
    assert found[0][-1] == "no difference beyond chance"
    assert found[1][:3] == ["100 %", "stage1 − random", "+0.100 [+0.100, +0.100]"]
    assert found[1][-1] == "better"
    worse = bench.results_tables.difference_rows(rows[:4], "stage1")
    assert worse[0][-1] == "worse"
    assert worse[0][2] == "−0.100 [−0.100, −0.100]"
    words = " ".join(bench.results_tables.summary_words(rows))
    assert "better with 100 % of the labels (MMA +0.100" in words
    assert "no difference beyond chance with 5 %" in words


def test_tables_show_the_scores_and_their_intervals(bench: Any) -> None:
    facts = {"train_seconds": 61.4, "seconds_per_image": 0.256, "version": "otsu 1"}
    peers = [result(bench, "Otsu", [4, 4, 4], part="peers", facts=facts)]
    text = "\n".join(bench.results_tables.peer_tables(peers))
    assert (
        "| Otsu | 0.400 [0.400, 0.400] | 0.400 [0.400, 0.400] | 0.400 [0.400, 0.400] | 0.400 [0.400, 0.400] |" in text
    )
    assert "| Otsu | 61 | 0.26 | 1 | otsu 1 |" in text
    ablation = [result(bench, "random", [2, 2], seed=0), result(bench, "random", [6, 6], seed=1)]
    text = "\n".join(bench.results_tables.ablation_tables(ablation))
    assert "| 100 % (7) | random | 2 | 0.400 [0.200, 0.600] |" in text


def test_seeds_scored_on_other_images_are_refused(bench: Any) -> None:
    rows = [result(bench, "random", [1, 2]), result(bench, "random", [1, 2], seed=1, images=["a", "b"])]
    with pytest.raises(ValueError, match="different images"):
        bench.results_tables.runs(rows)


def test_the_page_lists_the_command_that_makes_it(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "--data /somewhere/cells --out runs/results --peer stardist=/x/bin/python --start random stage1=b.safetensors"
    )
    line += f" --seeds 0 1 --fractions 5 100 --steps 40 --seconds 30 --docs {tmp_path} backbone.depth=2"
    monkeypatch.setattr(sys, "argv", ["results.py", *shlex.split(line)])
    given, overrides = bench.results.parse()
    rows = [
        result(bench, name, [3, 5, 4], seed=s, fraction=f)
        for name in ("random", "stage1")
        for s in (0, 1)
        for f in (5, 100)
    ]
    page = bench.results_page.write_page(given, overrides, rows, ["ablation_x"]).read_text(encoding="utf-8")
    assert "/somewhere" not in page
    assert "`ablation_x`" in page
    command = page.split("```")[1].replace("\\\n", " ")
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    shown, shown_overrides = bench.results.parse()
    for name in ("steps", "seconds", "seeds", "fractions", "peer_seeds", "images", "threads", "config"):
        assert getattr(shown, name) == getattr(given, name), name
    assert shown_overrides == overrides
    for figure in ("results_labels.png", "results_training.png"):
        assert figure in page
        assert (tmp_path / "figures" / figure).stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--start stage1", "NAME=BACKBONE"),
        ("--part peers --peer omnipose=python", "omnipose"),
        ("train.stepps=3", "train.steps"),
        ("--stepps 3", "--stepps"),
    ],
)
def test_a_mistake_is_found_before_the_first_training(
    bench: Any, line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--data", "cells", "--out", str(tmp_path), *line.split()])
    with pytest.raises(ConfigError, match=words):
        bench.results.main()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    synthetic.write_sample(folder, n_unlabelled=0, n_train=3, n_val=1, n_test=2, size=64, seed=5)
    return folder / "labelled"


def arguments(sample: Path, out: Path) -> argparse.Namespace:
    recipe = "finetune/configs/vitt8_cpu.yaml"
    return argparse.Namespace(data=[str(sample)], out=out, threads=1, steps=2, images=1, config=recipe, seconds=1.0)


def test_a_peer_runs_in_its_own_process_and_is_scored_on_what_it_wrote(
    bench: Any, sample: Path, tmp_path: Path
) -> None:
    [found] = bench.results.train_peer(arguments(sample, tmp_path), str(sample), "otsu", "python", 0, 0.0, "otsu")
    items = open_dataset(sample, "test")
    assert found.images == [item.stem for item in items]
    for item, row in zip(items, found.scores, strict=True):
        assert row == score_image(read_labels(item.mask), otsu_watershed(to_gray(read_image(item.image))))
    assert found.facts["seconds_per_image"] > 0


def test_one_training_of_the_ablation(
    bench: Any, sample: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    tiny = ["crop_size=64", "input_size=64", "overlap=16", "backbone.depth=1", "decoder.neck_width=16", "device=cpu"]
    tiny += ["train.batch_size=2", "data.check_images=1", "validate.times=1", "validate.tune_decoding=false"]
    [found] = bench.results.one_ablation(arguments(sample, tmp_path), tiny, "random", "", 34, 0, "cell")
    assert (found.method, found.fraction, found.budget, len(found.scores)) == ("random", 34, 2, 1)
    assert found.facts["train_images"] == 2  # a third of three, and the one val image
    assert [step for step, _ in found.facts["curve"]] == [2]
