"""All the evidence of docs/results.md: peers at equal seconds, what stage 1 brings at equal steps, with intervals.

    python benchmarks/results.py --data DATA/nuclei DATA/phase --out runs/results --docs docs \
        --peer cellpose3=ENV/cellpose3/bin/python --peer stardist=ENV/stardist/bin/python --seconds 480 \
        --model cells --start random stage1=runs/stage1/backbone.safetensors \
        --fractions 5 25 100 --seeds 0 1 2 --steps 300 --config finetune/configs/vitt8_cpu.yaml [key=value …]

Every finished training is a file in OUT/cells and is not repeated: stop it at any time, or give it a share of the time
with --minutes; the same command goes on, in the middle of a training of ours, and writes docs/results.md and
docs/figures from what is finished. `--part peers` or `--part ablation` trains only these; with `--part write` nothing
is trained. Cells made with another recipe, other steps, seconds, threads or images are kept apart.

Peers are trained on each dataset alone for --seconds, and so is our network; the ablation is trained on all datasets
together for --steps, and again with the settings of each --variant. Label subsets are nested (5 % within 25 % within
100 %), chosen by seed, at least one image. Equal seconds are wall clock: nothing else should run on these cores. On one
core: `taskset -c 0 … --threads 1`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from finetune_curve import split_start
from results_cells import Result, ablation_part, load, once, score, test_items, variants, write_subset
from results_page import write_page

from dinocell.core import log
from dinocell.core.config import flatten, to_dict
from dinocell.core.config import load as load_config
from dinocell.core.errors import ConfigError, DataError, run_main
from dinocell.core.files import sha256_of
from dinocell.finetune import FinetuneConfig, run
from dinocell.finetune.config import DataConfig
from dinocell.finetune.data.image_store import cell_scale
from dinocell.labels.files import read_labels
from dinocell.models.packaged import find_model
from dinocell.segmentation import Segmenter, load_model
from dinocell.training.outcome import Stopped
from dinocell.training.progress import read_metrics

HERE = Path(__file__).resolve().parent
PEERS = {"otsu": "train_otsu.py", "cellpose3": "train_cellpose3.py", "stardist": "train_stardist.py"}
PARTS = ("peers", "ablation", "write")
SCALES = ("known", "estimated")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell of the evidence: the part it belongs to, its file, and how to make it."""

    part: str
    file: Path
    make: Callable[[], Sequence[Result]]


def main() -> None:
    """Make what is missing, then write the page."""
    given, overrides = parse()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a peer's process ends with this one
    starts = dict(split_start(text) for text in given.start)
    tasks = [*peer_tasks(given, overrides, starts), *ablation_tasks(given, overrides, starts)]
    make_missing(given, [task for task in tasks if task.part in given.part and not task.file.is_file()])
    results = [result for task in tasks if task.file.is_file() for result in load(task.file)]
    missing = [task.file.stem.rpartition("_")[0] for task in tasks if not task.file.is_file()]
    if not results:
        raise DataError(f"{given.out}: nothing is finished yet; run without `--part write`, or give it more --minutes")
    page = write_page(given, overrides, results, missing)
    log.info(f"{len(tasks) - len(missing)} of {len(tasks)} parts finished; page: {page}")


def make_missing(given: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Make one cell after the other, as long as there is time and nobody asks to stop."""
    began = time.monotonic()
    for number, task in enumerate(tasks):
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            log.info(f"{given.minutes:g} minutes are over; the same command goes on")
            return
        log.info(f"\n{task.file.stem} ({number + 1} of {len(tasks)} to make)")
        start = time.monotonic()
        try:
            once(task.file, task.make)
        except Stopped as stopped:
            log.info(f"stopped by {stopped}; the same command goes on")
            return
        except DataError as error:
            log.warning(f"{task.file.stem} is left out: {error}")
        log.info(f"{task.file.stem}: {time.monotonic() - start:.0f} s in all")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line; what argparse does not know are key=value settings of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="datasets with train and test splits")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished parts")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where results.md and figures/ go")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["peers", "ablation"])
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON of its environment; repeatable")
    parser.add_argument("--seconds", type=float, default=480, help="budget of each peer and of our network beside it")
    parser.add_argument("--peer-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", action="append", default=[], help="finished model to show beside the peers")
    parser.add_argument("--start", nargs="+", default=["random"], help="random, or NAME=BACKBONE; first the base")
    parser.add_argument("--fractions", nargs="+", type=float, default=[5, 25, 100], help="per cent of the labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each training of the ablation")
    parser.add_argument("--config", default="finetune/configs/vitt8_cpu.yaml")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--images", type=int, default=0, help="test images a dataset in the ablation; 0 = all")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default=SCALES[0],
        help="what the ablation's models are shown test images at: the scale of their truth, or the models' estimate",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="do the ablation once more with these settings of the recipe; repeatable",
    )
    parser.add_argument("--minutes", type=float, default=0, help="begin no further training after this; 0 = no limit")
    given, overrides = parser.parse_known_args()
    wrong = next((text for text in overrides if text.startswith("-") or "=" not in text), None)
    if wrong:
        raise ConfigError(f"argument {wrong!r} is not known; --help lists them, settings of the recipe are key=value")
    for settings in variants(given.variant).values():  # a mistake shows before the first training
        load_config(FinetuneConfig, given.config, [*overrides, *settings])
    return given, overrides


def cell_file(given: argparse.Namespace, name: str, *facts: object) -> Path:
    """OUT/cells/NAME_HASH.json; the hash is of everything else that decides the result."""
    digest = hashlib.sha256(json.dumps([str(fact) for fact in facts]).encode()).hexdigest()[:8]
    return Path(given.out / "cells" / f"{name}_{digest}.json")


def chosen_settings(recipe: FinetuneConfig) -> dict[str, Any]:
    """Values, not the recipe's name, decide what is kept: those that are not the default, so that a setting which is
    new in the project and left alone does not make finished trainings stale."""
    default = flatten(to_dict(FinetuneConfig()))
    return {key: value for key, value in sorted(flatten(to_dict(recipe)).items()) if value != default[key]}


def content(weights: str | Path) -> str:
    """SHA-256 of a backbone file or of the weights in a folder; "" for a random start."""
    if not weights:
        return ""
    path = Path(weights)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return " ".join(sha256_of(file) for file in files)


# ---- peers: equal seconds ----


def peer_tasks(given: argparse.Namespace, overrides: list[str], starts: dict[str, str]) -> Iterator[Task]:
    """Otsu, the peers and our network on each dataset alone; finished models on all of them."""
    recipe = chosen_settings(load_config(FinetuneConfig, given.config, overrides))
    pythons = dict(text.partition("=")[::2] for text in given.peer)
    unknown = [name for name in pythons if name not in PEERS]
    if unknown:
        raise ConfigError(f"--peer: {unknown[0]!r} is not known; known: {', '.join(PEERS)}, as NAME=PYTHON")
    for root in given.data:
        name = Path(root).resolve().name
        yield _peer_task(given, root, "otsu", "python", 0, seconds=0.0)
        for seed in given.peer_seeds:
            for peer, python in pythons.items():
                yield _peer_task(given, root, peer, python, seed, seconds=given.seconds)
            for start, weights in starts.items():
                cell = f"peer_{name}_dinocell-{start}_seed{seed}"
                fixed = (recipe, content(weights), given.seconds, given.threads)
                file = cell_file(given, cell, Path(root).resolve(), *fixed)
                yield Task(
                    part="peers",
                    file=file,
                    make=lambda s=seed, r=root, n=start, w=weights, c=file.stem: ours_in_seconds(
                        given, overrides, r, n, w, s, c
                    ),
                )
        for model in given.model:
            cell = f"peer_{name}_model-{Path(model).name}"
            file = cell_file(given, cell, Path(root).resolve(), content(find_model(model)), given.threads)
            yield Task(part="peers", file=file, make=lambda r=root, m=model: finished_model(r, m))


def _peer_task(given: argparse.Namespace, root: str, peer: str, python: str, seed: int, *, seconds: float) -> Task:
    cell = f"peer_{Path(root).resolve().name}_{peer}_seed{seed}"
    file = cell_file(given, cell, Path(root).resolve(), seconds, given.threads)
    make = partial(train_peer, given, root, peer, python, seed, seconds, file.stem)
    return Task(part="peers", file=file, make=make)


def train_peer(
    given: argparse.Namespace, root: str, peer: str, python: str, seed: int, seconds: float, cell: str
) -> list[Result]:
    """Run a peer's script in its environment and score its label images.

    Raises:
        DataError: the script failed.
    """
    folder = given.out / "peers" / cell
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable if python == "python" else python, str(HERE / "peers" / PEERS[peer])]
    command += ["--dataset", str(root), "--seconds", str(seconds), "--out", str(folder)]
    command += ["--threads", str(given.threads), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with (folder / "log.txt").open("w", encoding="utf-8") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode or not (folder / "peer.json").is_file():
        raise DataError(f"{peer} ended with code {done.returncode}; see {folder / 'log.txt'}")
    facts = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
    items = test_items(root, 0)
    name = Path(root).resolve().name
    scores = score(items, lambda item: read_labels(folder / "labels" / name / f"{item.stem}_labels.tif"))
    return [_result("peers", facts["name"], name, 100, seed, seconds, items, scores, facts)]


def ours_in_seconds(
    given: argparse.Namespace, overrides: list[str], root: str, start: str, weights: str, seed: int, cell: str
) -> list[Result]:
    """Our network on one dataset for `--seconds`, validations included; scored as it comes."""
    budget = [f"train.minutes={given.seconds / 60}", "train.steps=1000000", "validate.times=4"]
    folder = train(given, overrides, [root], weights, seed, given.out / "runs" / cell, budget)
    seconds = read_metrics(folder / "metrics.jsonl", "train")[-1]["seconds"]
    items, name = test_items(root, 0), Path(root).resolve().name
    scores, speed = segment_and_score(load_model(folder / "model"), items)
    facts = {"train_seconds": seconds, "seconds_per_image": speed, "version": Path(given.config).stem}
    return [_result("peers", f"DINOCell ({start} start)", name, 100, seed, given.seconds, items, scores, facts)]


def finished_model(root: str, model: str) -> list[Result]:
    """A model that was trained elsewhere, on one test split."""
    items, name = test_items(root, 0), Path(root).resolve().name
    scores, speed = segment_and_score(load_model(model), items)
    facts = {"seconds_per_image": speed, "version": Path(find_model(model)).name}
    return [_result("peers", f"DINOCell model `{Path(model).name}`", name, 100, 0, 0.0, items, scores, facts)]


def segment_and_score(
    model: Segmenter, items: Sequence[Any], limits: DataConfig | None = None
) -> tuple[list[Any], float]:
    """Counts of each image, and the seconds it took to read and segment one.

    Args:
        limits: those of the training, where each image is to be shown at the scale that the training would have
            given it; None leaves the scale to the model.
    """
    model.segment(items[0].image)  # compilers and caches warm up outside the clock
    spent = 0.0

    def labels_of(item: Any) -> Any:
        nonlocal spent
        diameter = None if limits is None else known_diameter(model, read_labels(item.mask), limits)
        start = time.perf_counter()
        labels = model.segment(item.image, diameter=diameter).labels
        spent += time.perf_counter() - start
        return labels

    scores = score(items, labels_of)
    return scores, spent / len(items)


def known_diameter(model: Segmenter, truth: Any, limits: DataConfig) -> float | None:
    """What to tell the model of an image's cells (px) so that it scales the image as the training did."""
    trained = model.card.training.diameter
    if not limits.rescales or not trained:
        return None
    return float(trained) / cell_scale(truth, limits)


# ---- the ablation: equal steps ----


def ablation_tasks(given: argparse.Namespace, overrides: list[str], starts: dict[str, str]) -> Iterator[Task]:
    """Every seed, share of the labels and start, seeds outermost: what is unfinished is then spread evenly."""
    roots = [Path(root).resolve() for root in given.data]
    for variant, settings in variants(given.variant).items():
        changed = [*overrides, *settings]
        recipe, part = chosen_settings(load_config(FinetuneConfig, given.config, changed)), ablation_part(variant)
        for seed in given.seeds:
            for fraction in sorted(given.fractions, reverse=True):
                for start, weights in starts.items():
                    cell = f"{part}_{start}_{fraction:g}pc_seed{seed}_{given.steps}steps"
                    file = cell_file(given, cell, *roots, recipe, content(weights), given.images, given.scale)
                    name = (start, weights, fraction, seed, file.stem)
                    yield Task(part="ablation", file=file, make=partial(one_ablation, given, changed, *name, part=part))


def one_ablation(
    given: argparse.Namespace,
    overrides: list[str],
    start: str,
    weights: str,
    fraction: float,
    seed: int,
    cell: str,
    *,
    part: str,
) -> list[Result]:
    """One training on a share of the labels of all datasets, scored on each test split."""
    roots = write_subset(given.data, fraction, seed, given.out / "subsets" / f"seed{seed}_{fraction:g}pc")
    budget = [f"train.steps={given.steps}", "train.minutes=0"]
    folder = train(given, overrides, roots, weights, seed, given.out / "runs" / cell, budget)
    model = load_model(folder / "model")
    limits = load_config(FinetuneConfig, given.config, overrides).data if given.scale == "known" else None
    results = []
    for root in given.data:
        name, items = Path(root).resolve().name, test_items(root, given.images)
        scores, speed = segment_and_score(model, items, limits)
        rows = read_metrics(folder / "metrics.jsonl", f"val/{dataset_name(root)}")
        rows = rows or read_metrics(folder / "metrics.jsonl", "val")
        subset = given.out / "subsets" / f"seed{seed}_{fraction:g}pc" / name
        facts = {
            "seconds_per_image": speed,
            "train_images": sum(len(list((subset / split / "masks").iterdir())) for split in ("train", "val")),
            "curve": [[row["step"], row["MMA"]] for row in rows],
            "run": str(folder),
        }
        results.append(_result(part, start, name, fraction, seed, given.steps, items, scores, facts))
    return results


def dataset_name(root: str | Path) -> str:
    """What dataset.yaml calls the dataset, which is how the log names its validations."""
    from dinocell.datasets.labelled import read_info

    return read_info(Path(root)).name


def train(
    given: argparse.Namespace,
    overrides: list[str],
    roots: Sequence[str],
    weights: str,
    seed: int,
    out: Path,
    budget: list[str],
) -> Path:
    """Fine-tune by the recipe; an interrupted training goes on.

    Raises:
        Stopped: a signal ended it early.
    """
    own = [
        f"data.root={json.dumps(list(roots))}",
        f"output_dir={json.dumps(str(out))}",
        f"backbone.weights={json.dumps(weights)}",
        f"seed={seed}",
    ]
    return run(load_config(FinetuneConfig, given.config, [*overrides, *budget, *own])).finished().folder


def _result(
    part: str,
    method: str,
    dataset: str,
    fraction: float,
    seed: int,
    budget: float,
    items: Sequence[Any],
    scores: list[Any],
    facts: dict[str, Any],
) -> Result:
    return Result(
        part=part,
        method=method,
        dataset=dataset,
        fraction=fraction,
        seed=seed,
        budget=budget,
        images=[item.stem for item in items],
        scores=scores,
        facts=facts,
    )


if __name__ == "__main__":
    run_main(main)
