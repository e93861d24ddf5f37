"""Probes of the teacher's features: right answers on features made for it, and a run that keeps its best teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dinocell.core import config as config_module
from dinocell.core.errors import ConfigError
from dinocell.core.files import load_file
from dinocell.datasets.synthetic.sample import make_image
from dinocell.models import load_backbone
from dinocell.pretrain import PretrainConfig, run
from dinocell.pretrain.build import make_backbone
from dinocell.pretrain.monitor.best_teacher import BestTeacher
from dinocell.pretrain.monitor.probes import (
    Probes,
    _busiest,
    balanced_accuracy,
    cell_probe,
    central,
    linear_probe,
    nearest_neighbours,
    source_probe,
)
from dinocell.pretrain.report import verdict
from dinocell.training.progress import read_metrics


def two_groups(distance: float, dimensions: int = 16, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal features of two classes, 1 : 5, whose means lie `distance` standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    classes = (torch.arange(count) % 6 == 0).long()
    features = torch.randn(count, dimensions, generator=generator)
    features[:, 3] += distance * classes
    return features + 7, classes


@pytest.mark.parametrize("classify", [nearest_neighbours, linear_probe])
def test_probes_separate_what_is_separable_and_nothing_else(classify: Any) -> None:
    features, classes = two_groups(8.0)
    assert balanced_accuracy(classify(features[:300], classes[:300], features[300:]), classes[300:]) > 0.99
    features, classes = two_groups(0.0)
    assert 0.35 < balanced_accuracy(classify(features[:300], classes[:300], features[300:]), classes[300:]) < 0.65


def test_linear_probe_reaches_the_bayes_rate() -> None:
    features, classes = two_groups(2.0, count=40_000)
    found = linear_probe(features[::2], classes[::2], features[1::2])
    bayes = 0.5 * (1 + torch.erf(torch.tensor(1.0 / 2**0.5))).item()  # Φ(distance / 2), equal priors
    assert balanced_accuracy(found, classes[1::2]) == pytest.approx(bayes, abs=0.01)


def test_balanced_accuracy_of_a_hand_made_case() -> None:
    assert balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1])) == 0.5
    assert balanced_accuracy(torch.tensor([1, 1, 0, 1]), torch.tensor([0, 1, 0, 1])) == 0.75


def test_crops_lie_where_cells_and_background_meet() -> None:
    cells = np.zeros((200, 300), np.float32)
    cells[100:180, 200:280] = 1
    y, x = _busiest(cells, 64)
    assert cells[y : y + 64, x : x + 64].mean() == pytest.approx(0.5, abs=0.06)
    assert _busiest(np.zeros((10, 12), np.float32), 64) == (0, 0)
    small = central(np.arange(12.0).reshape(3, 4), 8)
    assert small.shape == (8, 8)
    assert set(np.unique(small)) == set(range(12))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources that look different, and a labelled dataset."""
    root = tmp_path_factory.mktemp("probes")
    rng = np.random.default_rng(0)
    for name, sigma, level in (("fine", 1, 60), ("coarse", 4, 180)):
        (root / "crops" / name).mkdir(parents=True)
        for index in range(6):
            smooth = cv2.GaussianBlur(rng.normal(size=(64, 64)), (0, 0), sigma)
            image = np.clip(level + 30 * smooth / smooth.std(), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "crops" / name / f"{index}.png"), image)
    for split, seeds in (("train", range(6)), ("val", range(6, 10))):
        for part in ("images", "masks"):
            (root / "labelled" / split / part).mkdir(parents=True)
        for seed in seeds:
            image, labels = make_image(seed, 96, "fluorescence")
            cv2.imwrite(str(root / f"labelled/{split}/images/{seed}.png"), np.asarray(image))
            cv2.imwrite(str(root / f"labelled/{split}/masks/{seed}.png"), labels.astype(np.uint16))
    return root


def recipe(sources: Path, out: Path, **monitor: Any) -> PretrainConfig:
    """A tiny run over both sources."""
    return config_module.from_dict(
        PretrainConfig,
        {
            "output_dir": str(out),
            "model": {"arch": "vit_tiny", "depth": 1, "image_size": 32, "layerscale_init": 1.0},
            "data": {"root": [str(sources / "crops")], "workers": 0},
            "augment": {"global_size": 32, "local_size": 16, "local_crops": 2},
            "dino_head": {"prototypes": 24, "hidden": 16, "bottleneck": 8},
            "ibot_head": {"prototypes": 24, "hidden": 16, "bottleneck": 8},
            "teacher": {"temperature_warmup_epochs": 0.5},
            "optim": {"epochs": 1, "epoch_steps": 6, "batch_size": 2, "warmup_epochs": 0.2},
            "monitor": {"every": 2, "labelled": [str(sources / "labelled")], "images": 12, **monitor},
            "device": "cpu",
            "precision": "float32",
            "log_every": 1,
            "tensorboard": False,
        },
    )


def test_probes_tell_real_differences_with_random_weights(sources: Path, tmp_path: Path) -> None:
    config = recipe(sources, tmp_path)
    probes = Probes(config, [str(path) for path in sorted((sources / "crops").rglob("*.png"))])
    torch.manual_seed(0)
    values = probes.measure(make_backbone(config), torch.float32)
    assert list(values) == probes.names == ["knn_source", "knn_patch", "probe_patch"]
    assert values["knn_source"] == 1.0  # brightness alone tells the two apart
    assert 0.6 < values["probe_patch"] < 1  # bright nuclei on dark ground, at 8 px
    assert values["knn_patch"] > 0.6


def test_probe_images_are_fixed_and_split(sources: Path, tmp_path: Path) -> None:
    config = recipe(sources, tmp_path)
    probe, again = cell_probe(config), cell_probe(config)
    assert probe.classes.shape == (10, 4, 4)
    assert set(np.unique(probe.classes)) <= {-1, 0, 1}
    assert probe.references == 6
    assert all(np.array_equal(a, b) for a, b in zip(probe.images, again.images, strict=True))
    assert source_probe(config, [str(sources / "crops/fine/0.png")]) is None


def test_a_run_logs_probes_keeps_its_best_teacher_and_exports_it(sources: Path, tmp_path: Path) -> None:
    folder = run(recipe(sources, tmp_path / "run")).folder
    rows = read_metrics(folder / "metrics.jsonl", "probe")
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    best = max(rows, key=lambda row: (row["probe_patch"], -row["step"]))
    kept = load_file(folder / "checkpoints" / "best.pt")
    assert kept["step"] == best["step"]
    backbone = load_backbone(folder, in_channels=None)
    name = "patch_embed.proj.weight"
    assert torch.equal(backbone.state_dict()[name], kept["teacher"][f"backbone.{name}"])
    assert "balanced accuracy" in (folder / "report.html").read_text()


def test_probes_and_patch_tokens_go_to_tensorboard(sources: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(recipe(sources, tmp_path / "run", every=3), tensorboard=True)
    events = EventAccumulator(str(run(config).folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("patch tokens")] == [0, 3, 6]
    assert any(tag.endswith("probe_patch") for tag in events.Tags()["scalars"])


def test_a_run_without_improvement_stops_and_stays_stopped(sources: Path, tmp_path: Path, capsys: Any) -> None:
    config = recipe(sources, tmp_path / "run", best_by="knn_source", patience=1, every=1)  # 1.0 from the start
    folder = run(config).folder
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl", "train")] == [1]
    assert "best knn_source 1.000 at step 0" in capsys.readouterr().out
    run(config)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl", "train")] == [1]


def test_what_cannot_be_watched_is_said(sources: Path, tmp_path: Path) -> None:
    config = recipe(sources, tmp_path, labelled=[], best_by="probe_patch")
    with pytest.raises(ConfigError, match=r"monitor\.best_by: probe_patch needs monitor\.labelled"):
        BestTeacher(config, ["knn_source"])
    with pytest.raises(ConfigError, match=r"monitor\.patience"):
        BestTeacher(recipe(sources, tmp_path, labelled=[], patience=3), ["knn_source"])
    empty = tmp_path / "empty"
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (empty / split / part).mkdir(parents=True)
            cv2.imwrite(str(empty / split / part / "a.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(ConfigError, match="0 patches of cells"):
        cell_probe(recipe(sources, tmp_path, labelled=[str(empty)]))


def test_verdict_names_a_run_that_went_past_its_best() -> None:
    rows = [{"step": s, "split": "probe", "probe_patch": v} for s, v in ((0, 0.70), (10, 0.81), (20, 0.66))]
    text = verdict(json.loads(json.dumps(rows)))
    assert "probe_patch fell: 0.700 at step 0, 0.660 at step 20, highest 0.810 at step 10" in text
