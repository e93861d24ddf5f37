"""The run as a whole: it learns, continues exactly after a kill, and does not depend on how the batch is split."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dinocell.core.config import load, to_yaml
from dinocell.core.errors import EXIT_STOPPED, ConfigError
from dinocell.core.files import load_file
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.trainer import Trainer
from dinocell.labels.files import read_labels
from dinocell.metrics import maximum_matching_accuracy
from dinocell.models import load_model_folder
from dinocell.segmentation import Segmenter
from dinocell.training.progress import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tiny):
    own = {"backbone": {"depth": 3}, "decoder": {"neck_width": 32}}
    own["train"] = {"steps": 6, "clip_gradient": 1.0, "checkpoint_every": 3}
    return lambda root, out, **changes: tiny(root, out, own, changes)


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(out / "metrics.jsonl", "train")}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(out / "model")[0].state_dict()


def test_learns_disks_and_the_model_folder_segments_them(disks_dataset, tmp_path, recipe):
    out = run(
        recipe(
            disks_dataset,
            tmp_path / "run",
            crop_size=64,
            input_size=64,
            augment={"invert": 0.0},
            train={"steps": 60, "batch_size": 4, "ema": 0.9, "log_every": 5, "warmup": 0.1},
            validate={"times": 2, "tune_decoding": True},
        )
    ).folder
    curve = list(losses(out).values())
    assert curve[-1] < 0.4 * curve[0]
    for row in read_metrics(out / "metrics.jsonl", "train"):
        assert row["flow"] > 0 and row["cell"] > 0
        assert row["flow"] + row["cell"] == pytest.approx(row["loss"], rel=1e-5)
    segmenter = Segmenter(out / "model", device="cpu", precision="float32")
    truth = read_labels(disks_dataset / "val" / "masks" / "0.png")
    labels = segmenter.segment(disks_dataset / "val" / "images" / "0.png").labels
    assert maximum_matching_accuracy(truth, labels) > 0.7
    meta = json.loads((out / "model" / "config.json").read_text())
    assert meta["training"]["datasets"][0]["name"] == "disks"
    assert meta["training"]["diameter"] == pytest.approx(20, abs=3)
    assert [entry["diameter"] for entry in meta["training"]["datasets"]] == [meta["training"]["diameter"]]
    assert meta["validation"]["mean"]["MMA"] > 0.7
    assert "| disks |" in (out / "model" / "MODEL_CARD.md").read_text()
    tuning = meta["validation"]["tuning"]
    assert tuning["recipe"]["flow_error"] == 0.4 and tuning["score_chosen"] >= tuning["score_recipe"] - 0.002
    assert meta["objective"].items() >= tuning["chosen"].items()
    assert segmenter.objective.flow_error == tuning["chosen"]["flow_error"]
    # The scores written beside the weights are those of the decoding written beside them.
    assert meta["validation"]["mean"]["MMA"] == pytest.approx(tuning["score_chosen"])
    for page in (out / "model" / "MODEL_CARD.md", out / "report.html"):
        assert "Decoding chosen on the val split (2 images" in page.read_text()
    assert "training loss fell" in (out / "report.html").read_text()


def test_continued_run_equals_an_uninterrupted_one(disks_dataset, tmp_path, recipe):
    settings = {"decoder": {"drop_rate": 0.1}, "augment": {"noise": 0.5}, "train": {"ema": 0.9}}
    whole = run(recipe(disks_dataset, tmp_path / "whole", **settings)).folder
    cut = tmp_path / "cut"
    run(recipe(disks_dataset, cut, **settings))
    # As after a kill between the checkpoint of step 3 and the next one, with lines logged past it.
    for path in (cut / "checkpoints").glob("*00006*"):
        path.unlink()
    for path in (cut / "model").iterdir():
        path.unlink()
    run(recipe(disks_dataset, cut, **settings))
    assert losses(cut) == losses(whole)
    for (name, a), b in zip(weights(whole).items(), weights(cut).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("train", [{"accumulate": 2}, {"accumulate": 4}])
def test_accumulation_gives_the_same_training(disks_dataset, tmp_path, train, recipe):
    data = {"fully_annotated": "no"}  # weights differ between crops: the split batch must share one ΣM
    one = run(recipe(disks_dataset, tmp_path / "one", data=data)).folder
    split = run(recipe(disks_dataset, tmp_path / "split", data=data, train=train)).folder
    assert list(losses(split).values()) == pytest.approx(list(losses(one).values()), rel=1e-4)


def test_two_processes_give_the_same_training_as_one(disks_dataset, tmp_path, recipe):
    changes = {"data": {"fully_annotated": "no"}, "validate": {"times": 2, "tune_decoding": True}}
    one = run(recipe(disks_dataset, tmp_path / "one", **changes)).folder
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(recipe(disks_dataset, tmp_path / "two", **changes)))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = subprocess.run(
        [sys.executable, *launch, str(ROOT / "finetune" / "train.py"), "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert list(losses(tmp_path / "two").values()) == pytest.approx(list(losses(one).values()), rel=1e-4)
    metas = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("one", "two")]
    assert metas[0]["validation"]["tuning"]["images"] == metas[1]["validation"]["tuning"]["images"] == 2
    means = [meta["validation"]["mean"]["loss"] for meta in metas]
    assert means[1] == pytest.approx(means[0], rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_continued_by_the_same_command(disks_dataset, tmp_path, number, recipe):
    out = tmp_path / "run"
    config = tmp_path / "recipe.yaml"
    config.write_text(to_yaml(recipe(disks_dataset, out, train={"steps": 100_000, "checkpoint_every": 2})))
    command = [sys.executable, str(ROOT / "finetune" / "train.py"), "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if len(list((out / "checkpoints").glob("step_*.pt.sha256"))) >= 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=60)
    logged = max(losses(out))
    saved = max(int(p.stem[5:]) for p in (out / "checkpoints").glob("step_*.pt"))
    assert saved >= logged - 2
    if number == signal.SIGTERM:
        assert process.returncode == EXIT_STOPPED and saved == logged
    last = saved + 3
    run(recipe(disks_dataset, out, train={"steps": last, "checkpoint_every": 2}))
    assert max(losses(out)) == last and sorted(losses(out)) == list(range(1, last + 1))


@pytest.mark.parametrize("mode", ["frozen", "last_k", "unfreeze_after"])
def test_only_the_chosen_part_of_the_backbone_moves(disks_dataset, tmp_path, mode, recipe):
    from dinocell.finetune.network import build_model

    config = recipe(disks_dataset, tmp_path / "run", backbone={"train": mode, "last_k": 2, "unfreeze_after": 0.5})
    before = build_model(config, 3).backbone.state_dict()
    after = {
        k.removeprefix("backbone."): v for k, v in weights(run(config).folder).items() if k.startswith("backbone.")
    }
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    match mode:
        case "frozen":
            assert not moved
        case "last_k":
            assert moved and all(name.startswith(("blocks.1.", "blocks.2.", "norm.")) for name in moved)
        case "unfreeze_after":
            assert {"pos_embed", "blocks.0.attn.qkv.weight"} <= moved


def test_other_settings_in_the_same_folder_are_refused(disks_dataset, tmp_path, recipe):
    run(recipe(disks_dataset, tmp_path / "run", train={"steps": 1}))
    with pytest.raises(ConfigError, match=r"contains a run with seed=0 \(now 99\); set it back .* another output_dir"):
        run(recipe(disks_dataset, tmp_path / "run", train={"steps": 2}, seed=99))
    with pytest.raises(ConfigError, match=r"train.lr=0.001 \(now 0.01\), and no step is left"):
        run(recipe(disks_dataset, tmp_path / "run", train={"steps": 1, "lr": 0.01}))


def test_a_lower_learning_rate_and_another_monitor_count_from_the_next_step_on(disks_dataset, tmp_path, recipe):
    out = run(recipe(disks_dataset, tmp_path / "run", train={"steps": 2, "warmup": 0.0})).folder
    again = {"steps": 4, "warmup": 0.0, "lr": 1e-5, "final_lr": 1e-5, "log_every": 1}
    run(recipe(disks_dataset, out, train=again, validate={"monitor": "loss"}))
    assert read_metrics(out / "metrics.jsonl", "train")[-1]["lr"] == pytest.approx(1e-5)
    saved = load_file(sorted((out / "checkpoints").glob("step_*.pt"))[-1])
    assert -10 < saved["best"] < 0, "a loss, not the score that was best before"
    assert load(FinetuneConfig, out / "config.yaml").train.lr == 1e-5


def test_early_stopping_and_time_budget_end_a_run(disks_dataset, tmp_path, recipe, monkeypatch):
    # A learning rate too small to change anything: no validation is better than the first.
    stuck = {"lr": 1e-12, "steps": 40}
    out = run(recipe(disks_dataset, tmp_path / "early", train=stuck, validate={"times": 20, "patience": 2})).folder
    assert max(losses(out)) <= 8
    # A clock that goes on by 0.03 s whenever it is read, as it is at least once a step: 60 readings.
    clock = itertools.count(step=0.03)
    module = sys.modules[Trainer.__module__]  # `dinocell.finetune.trainer` names the function
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    out = run(recipe(disks_dataset, tmp_path / "budget", train={"steps": 100_000, "minutes": 0.03})).folder
    rows = read_metrics(out / "metrics.jsonl", "train")
    assert 5 <= rows[-1]["step"] <= 60
    assert rows[-1]["seconds"] == pytest.approx(1.8, abs=0.1)
    assert rows[-1]["lr"] < 0.1 * max(row["lr"] for row in rows)
    assert (out / "model" / "model.safetensors").is_file()


def test_several_data_sets_are_sampled_as_asked_and_scored_apart(disks_dataset, tmp_path, recipe):
    other = tmp_path / "other"
    for kind in ("images", "masks"):
        for split, number in (("train", 3), ("val", 1)):
            (other / split / kind).mkdir(parents=True)
            shutil.copy(disks_dataset / split / kind / f"{number}.png", other / split / kind)
    (other / "dataset.yaml").write_text("name: other\nlicence: CC0\nfully_annotated: false\n")
    both = {"root": [str(disks_dataset), str(other)], "sampling": "balanced"}
    out = run(recipe(disks_dataset, tmp_path / "run", data=both, validate={"times": 2, "monitor": "mean"})).folder
    rows = {name: read_metrics(out / "metrics.jsonl", f"val/{name}") for name in ("disks", "other")}
    mean = read_metrics(out / "metrics.jsonl", "val")
    assert [row["step"] for row in mean] == [3, 6]
    for k in range(2):  # every dataset counts the same, whatever its number of images
        assert mean[k]["loss"] == pytest.approx((rows["disks"][k]["loss"] + rows["other"][k]["loss"]) / 2)
    assert "mean on the val split of each dataset" in (out / "report.html").read_text()
    meta = json.loads((out / "model" / "config.json").read_text())
    described = {
        d["name"]: (d["train_images"], d["licence"], d["fully_annotated"]) for d in meta["training"]["datasets"]
    }
    assert described == {"disks": (6, "unknown", True), "other": (1, "CC0", False)}
    assert meta["validation"]["mean_is"] == "mean over datasets"


def test_batch_that_cannot_be_shared_is_refused(disks_dataset, tmp_path, recipe):
    with pytest.raises(ConfigError, match=r"train.accumulate: 3 does not divide batch_size=4"):
        recipe(disks_dataset, tmp_path / "run", train={"accumulate": 3})
