"""benchmarks/results.py: label subsets, tables of known answer, and that what is finished is not done again."""

import argparse
import dataclasses
import importlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dinocell.core.config import load, to_yaml
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import open_dataset
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.evaluation.baseline import otsu_watershed
from dinocell.finetune.config import DataConfig, FinetuneConfig, TrainConfig
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import ImageScores, score_image
from dinocell.models import ModelCard
from dinocell.models.training_record import Training
from dinocell.pretrain import PretrainConfig
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.progress import read_metrics

TINY = ["crop_size=64", "input_size=64", "overlap=16", "backbone.depth=1", "decoder.neck_width=16", "device=cpu"]
TINY += ["train.batch_size=2", "data.check_images=1", "validate.times=1", "validate.tune_decoding=false"]


@pytest.fixture(scope="module")
def bench(repository: Path) -> Iterator[Any]:
    """The modules of benchmarks/, which are scripts beside each other and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        names = ("results", "results_cells", "results_page", "recipes", "results_tables")
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


def test_what_is_kept_depends_on_the_settings_that_were_chosen_only(bench: Any, tmp_path: Path) -> None:
    def file(**changes: Any) -> Path:
        recipe = dataclasses.replace(FinetuneConfig(crop_size=128, input_size=128, overlap=32), **changes)
        chosen: Path = bench.results.cell_file(
            argparse.Namespace(out=tmp_path), "a", bench.results.chosen_settings(recipe)
        )
        return chosen

    assert bench.results.chosen_settings(FinetuneConfig(seed=3)) == {
        "seed": 3
    }  # what is left alone is not written down
    assert file() == file(train=TrainConfig(lr=2e-5))  # the default
    assert file() != file(train=TrainConfig(lr=1e-3))


def test_differences_are_paired_and_said_in_words(bench: Any) -> None:
    low, high = [1, 8, 2, 7, 3, 6], [2, 9, 3, 8, 4, 7]
    rows = [result(bench, "random", low, seed=s) for s in (0, 1)]
    rows += [result(bench, "stage1", high, seed=s) for s in (0, 1)]
    rows += [result(bench, "random", low, fraction=5), result(bench, "stage1", low, fraction=5)]
    found = bench.results_tables.difference_rows(rows, "random")
    assert found[0][:3] == ["5 %", "stage1 − random", "+0.000"]
    assert found[0][-1] == "no difference beyond chance"
    assert found[1][:3] == ["100 %", "stage1 − random", "+0.100"]
    assert found[1][-1] == "better"
    worse = bench.results_tables.difference_rows(rows[:4], "stage1")
    assert worse[0][-1] == "worse"
    assert worse[0][2] == "−0.100"


def test_the_words_count_where_a_start_helps_and_leave_out_what_has_too_few_images(bench: Any) -> None:
    low, high = [1, 8, 2, 7, 3, 6], [2, 9, 3, 8, 4, 7]
    rows = []
    for dataset, better, worse in (("first", high, low), ("second", low, high), ("third", low, low)):
        rows += [result(bench, "random", worse, dataset=dataset), result(bench, "stage1", better, dataset=dataset)]
    rows += [result(bench, name, scores, dataset="small") for name, scores in (("random", [1, 1]), ("stage1", [9, 9]))]
    words = bench.results_tables.summary_words(rows)
    assert "3 comparisons" in words[0]
    assert "better in 1, worse in 1, no difference beyond chance in 1" in words[0]
    assert "+0.000 with 100 %" in words[1]
    assert "- Better: first with 100 % of the labels (+0.100)." in words
    assert "- Worse: second with 100 % of the labels (−0.100)." in words
    assert any(line.startswith("- Not counted") and line.endswith(": small.") for line in words)
    assert bench.results_tables.difference_rows(rows[-2:], "random")[0][-1] == "too few images"


def test_the_words_tell_how_far_a_start_is_ahead_during_training(bench: Any) -> None:
    ahead = {"train_images": 7, "curve": [[10, 0.4], [20, 0.35]], "run": "absent", "seconds_per_image": 0.5}
    rows = [result(bench, "random", [1] * 5), result(bench, "stage1", [1] * 5, facts=ahead)]
    assert any("+0.200 at step 10, −0.050 at step 20" in line for line in bench.results_tables.summary_words(rows))


@pytest.mark.parametrize("more", [3, 8])
def test_the_words_tell_what_more_labels_bring(bench: Any, more: int) -> None:
    rows = [result(bench, "random", [5] * 5, fraction=5), result(bench, "random", [more] * 5, fraction=100)]
    [line] = bench.results_tables.summary_words(rows)
    assert line.startswith(f"- `random` by labels (mean of the datasets): 0.500 with 5 %, 0.{more}00 with 100 %.")
    assert ("bring nothing in so few steps" in line) == (more < 5)


def test_peers_are_compared_with_the_best_of_them(bench: Any) -> None:
    rows = [
        result(bench, name, good, part="peers")
        for name, good in (("Otsu", [2] * 5), ("StarDist", [5, 5, 5, 5, 5]), ("DINOCell (random start)", [4] * 5))
    ]
    [line, _] = bench.results_tables.peer_words(rows)
    assert "StarDist, the best of the others: worse (MMA −0.100)" in line
    assert "| StarDist | 0.500 | 0.50 |" in bench.results_tables.peer_summary(rows)


def test_tables_show_the_scores_and_their_intervals(bench: Any) -> None:
    facts = {"train_seconds": 61.4, "seconds_per_image": 0.256, "version": "otsu 1"}
    peers = [result(bench, "Otsu", [4, 4, 4], part="peers", facts=facts)]
    text = "\n".join(bench.results_tables.peer_tables(peers))
    assert "| Otsu | 0.400 | 0.400 | 0.400 | 0.400 |" in text
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
    line += " --seeds 0 1 --fractions 5 100 --steps 40 --variant plain decoder.detail_width=0"
    line += f" --seconds 30 --docs {tmp_path} backbone.depth=2"
    monkeypatch.setattr(sys, "argv", ["results.py", *shlex.split(line)])
    given, overrides = bench.results.parse()
    rows = [
        result(bench, name, [3, 5, 4], seed=s, fraction=f, part=part)
        for part in ("ablation", "ablation-plain")
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
    for name in (
        "steps",
        "seconds",
        "seeds",
        "fractions",
        "peer_seeds",
        "images",
        "threads",
        "config",
        "variant",
    ):
        assert getattr(shown, name) == getattr(given, name), name
    assert shown_overrides == overrides
    assert "## The same with `decoder.detail_width=0`" in page
    assert "`decoder.detail_width`: width of a small convolutional branch" in page
    for name in ("labels", "training", "plain_labels", "plain_training"):
        figure = f"results_{name}.png"
        assert figure in page
        assert (tmp_path / "figures" / figure).stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--start stage1", "NAME=BACKBONE"),
        ("--part peers --peer omnipose=python", "omnipose"),
        ("train.stepps=3", "train.steps"),
        ("--stepps 3", "--stepps"),
        ("--variant plain decoder.detail_widht=0", "decoder.detail_width"),
        ("--variant plain --seeds 0", "--variant plain: give"),
        ("--variant Plain/2 decoder.detail_width=0", "small letters"),
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
    write_sample(folder, n_unlabelled=0, n_train=3, n_val=1, n_test=2, size=64, seed=5)
    return folder / "labelled"


def arguments(sample: Path, out: Path) -> argparse.Namespace:
    recipe = "finetune/configs/vitt8_cpu.yaml"
    numbers = {"threads": 1, "steps": 2, "images": 1, "seconds": 1.0, "scale": "known"}
    return argparse.Namespace(data=[str(sample)], out=out, config=recipe, **numbers)


def test_a_training_that_was_stopped_is_not_scored_and_the_command_goes_on(
    bench: Any, sample: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    line = f"--data {sample} --out {tmp_path / 'out'} --docs {tmp_path / 'docs'} --part ablation --fractions 100"
    line += " --seeds 0 --steps 4 --threads 1 " + " ".join(TINY)
    monkeypatch.setattr(sys, "argv", ["results.py", *line.split()])
    real, threads, handler = bench.results.run, torch.get_num_threads(), signal.getsignal(signal.SIGTERM)

    def killed(config: Any) -> Any:
        """The first checkpoint is a time to be killed; Python delivers the signal between two of its operations."""
        save = CheckpointManager.save

        def save_and_die(self: Any, step: int, state: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return save(self, step, state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointManager, "save", save_and_die)
            return real(dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=1)))

    try:
        monkeypatch.setattr(bench.results, "run", killed)
        with pytest.raises(DataError, match="nothing is finished"):
            bench.results.main()
        assert not list((tmp_path / "out" / "cells").glob("*.json"))
        monkeypatch.setattr(bench.results, "run", real)
        bench.results.main()
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    [cell] = (tmp_path / "out" / "cells").glob("*.json")
    [found] = bench.results_cells.load(cell)
    steps = [row["step"] for row in read_metrics(Path(found.facts["run"]) / "metrics.jsonl", "val")]
    assert steps == [4]
    assert "random" in (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_page_says_how_stage_1_was_trained(bench: Any, repository: Path, tmp_path: Path) -> None:
    base = str(repository / "ssl" / "configs" / "vits8_cpu.yaml")
    own = ["data.root=[/somewhere/crops]", f"output_dir={tmp_path}", "optim.base_lr=0.0007", "augment.rotate90=true"]
    (tmp_path / "config.yaml").write_text(to_yaml(load(PretrainConfig, base, own)), encoding="utf-8")
    lines = bench.results_page.stage1_lines(
        argparse.Namespace(start=["random", f"adapted={tmp_path / 'b.safetensors'}"])
    )
    assert lines[0] == "`adapted` was trained by"
    command = lines[3]
    assert "/somewhere" not in command
    arguments = shlex.split(command.replace("\\\n", " "))
    assert arguments[:4] == ["python", "ssl/train.py", "--config", "ssl/configs/vits8_cpu.yaml"]
    again = load(PretrainConfig, base, arguments[4:])
    assert (again.optim.base_lr, again.augment.rotate90) == (0.0007, True)
    assert len(arguments) <= 8, "what is as in the recipe need not be said"


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
    told = (arguments(sample, tmp_path), [*TINY, "decoder.detail_width=0"], "random", "", 34, 0, "cell")
    [found] = bench.results.one_ablation(*told, part="ablation-plain")
    assert found.part == "ablation-plain"
    meta = json.loads((tmp_path / "runs" / "cell" / "model" / "config.json").read_text(encoding="utf-8"))
    assert meta["decoder"]["detail_width"] == 0
    assert (found.method, found.fraction, found.budget, len(found.scores)) == ("random", 34, 2, 1)
    assert found.facts["train_images"] == 2  # a third of three, and the one val image
    assert [step for step, _ in found.facts["curve"]] == [2]


def test_a_variant_of_the_ablation_is_kept_apart(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"--data cells --out {tmp_path} --seeds 0 --fractions 5"
    line += " --variant plain decoder.detail_width=0"
    monkeypatch.setattr(sys, "argv", ["results.py", *line.split()])
    given, overrides = bench.results.parse()
    names = [
        task.file.stem.rpartition("_")[::2] for task in bench.results.ablation_tasks(given, overrides, {"random": ""})
    ]
    assert [name for name, _ in names] == [
        f"{part}_random_5pc_seed0_300steps" for part in ("ablation", "ablation-plain")
    ]
    assert names[0][1] != names[1][1]


@pytest.mark.parametrize(("side", "factor"), [(10, 2.0), (24, 1.0), (96, 0.25)])
def test_test_images_are_shown_at_the_scale_that_the_training_would_have_given_them(
    bench: Any, side: int, factor: float
) -> None:
    truth = np.zeros((200, 200), np.int32)
    truth[:side, :side] = 1
    limits = DataConfig(min_diameter=40 / np.sqrt(np.pi), max_diameter=48 / np.sqrt(np.pi))
    model = SimpleNamespace(card=ModelCard(crop_size=64, training=Training(diameter=25.0)))
    told = bench.results.known_diameter(model, truth, limits)
    assert 25.0 / told == pytest.approx(factor, rel=0.01)
    assert bench.results.known_diameter(model, truth, DataConfig()) is None
