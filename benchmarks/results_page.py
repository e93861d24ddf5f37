"""docs/results.md and its figures from finished results."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from recipes import recipe_command
from results_cells import Result, ablation_part, test_items, variants
from results_tables import (
    ablation_tables,
    draw_labels,
    draw_training,
    peer_summary,
    peer_tables,
    save_figure,
    summary_words,
)

from dinocell.core.config import leaves
from dinocell.core.files import atomic_write_text
from dinocell.datasets.labelled import LabelledItem
from dinocell.finetune import FinetuneConfig
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.contrast import to_uint8
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.models import VisionTransformer, load_backbone, load_model_folder
from dinocell.models.folder import is_model_folder
from dinocell.pretrain import PretrainConfig
from dinocell.pretrain.monitor.probes import central
from dinocell.pretrain.report import patch_tokens
from dinocell.report.pca import pca_grid

PCA_SIDE = 256


def write_page(given: argparse.Namespace, overrides: Sequence[str], results: list[Result], missing: list[str]) -> Path:
    """Write DOCS/results.md and DOCS/figures; returns the page."""
    peers = [r for r in results if r.part == "peers"]
    lines = ["# Results", "", INTRODUCTION, "", *_state(missing)]
    if peers:
        lines += ["## Beside other methods, trained for equal seconds", "", PEERS_NOTE, ""]
        lines += [*peer_summary(peers), *peer_tables(peers)]
    for variant, settings in variants(given.variant).items():
        ablation = [r for r in results if r.part == ablation_part(variant)]
        if ablation:
            lines += _ablation(given, ablation, variant, settings)
    page = Path(given.docs) / "results.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(page, "\n".join([*lines, *_how(given, overrides)]).rstrip() + "\n")
    return page


def _ablation(given: argparse.Namespace, results: list[Result], variant: str, settings: Sequence[str]) -> list[str]:
    """Words, figures and tables of the starts."""
    base = given.start[0].partition("=")[0]
    words = summary_words(results, base) or ["- one start only: nothing is compared."]
    if variant:
        lines = [f"## The same with `{' '.join(settings)}`", "", f"{_meanings(settings)} In words, by pooled MMA:"]
    else:
        lines = ["## What stage 1 brings, at equal steps", "", ablation_note(given)]
    stem = f"results_{variant}" if variant else "results"
    folder = Path(given.docs) / "figures"
    lines += ["", *words, ""]
    labels, training = f"{stem}_labels.png", f"{stem}_training.png"
    save_figure(draw_labels(results), folder / labels)
    save_figure(draw_training(results), folder / training)
    lines += [f"![scores over the share of the labels](figures/{labels})", "", LABELS_NOTE, ""]
    lines += [f"![training](figures/{training})", "", CURVE_NOTE, ""]
    if _pca_figure(given, results, folder / f"{stem}_pca.png"):
        note = PCA_NOTE.format(seed=min(r.seed for r in results))
        lines += [f"![principal components of the patch features](figures/{stem}_pca.png)", "", note, ""]
    return lines + ablation_tables(results, base)


def _meanings(settings: Sequence[str]) -> str:
    """What the recipe says of the settings that a variant changes."""
    fields = dict(leaves(FinetuneConfig))
    return " ".join(f"`{key}`: {fields[key].metadata['doc']}." for key in (s.partition("=")[0] for s in settings))


INTRODUCTION = (
    "Scores are MMA, SEG, DET and AP50 ([metrics.md](metrics.md)) on test splits that no method was trained on; "
    "when DINOCell's estimate of scale was last changed, its failures on some of them had been seen (README). "
    "Brackets hold 95 % bootstrap intervals over the images, and over the trainings where there are several; a "
    "dataset of fewer than 5 test images gets no verdict. `pooled` sums the counts of all images, so large images "
    "with many cells weigh most; `macro` is the mean of the images' scores. All words and figures below are computed "
    "from the finished trainings by the command at the end."
)
PEERS_NOTE = (
    "Each method is trained on the train split of one dataset alone, from random weights unless the row says "
    "otherwise, on this machine and for the same seconds of wall clock; its thresholds are chosen on the val split. A "
    "finished model (`model`) was trained elsewhere, on more images and for longer. Seconds per image are those of "
    "segmenting the test images one after the other (ours read the file within them). Ours compute in bfloat16 where "
    "the machine is fast at it, the peers in float32. A few minutes tell who learns fast, not who is best in the end: "
    "a score of 0 means that nothing had been learnt by then."
)
ABLATION_NOTE = (
    "The same network and recipe from different starting weights, trained for {steps} steps on {shares} % of the "
    "labels of all datasets together; the subsets are nested, and a subset's val images choose model and thresholds. "
    "{scale} Differences are paired over images and seeds. In words, by pooled MMA:"
)
SCALE_NOTES = {
    "known": "Test images are shown at the scale that their labels give, as in training: whether so young a model can "
    "tell the scale of an image itself is another question.",
    "estimated": "Each model estimates the scale of the test images itself.",
}
LABELS_NOTE = "Scores on the test splits over the share of the labels: lines are means of the seeds, bands intervals."
CURVE_NOTE = (
    "MMA on the val split during training with the largest share of the labels: lines are means, dots single seeds."
)
PCA_NOTE = (
    "The first three principal components of the patch features, as colours, fitted to each image: a column is the "
    "part with most cells of one test image, a row a stage: starting weights, then fine-tuned with the largest share "
    "of the labels, seed {seed}."
)


def ablation_note(given: argparse.Namespace) -> str:
    """What was trained, in words."""
    shares = ", ".join(f"{share:g}" for share in sorted(given.fractions))
    return ABLATION_NOTE.format(steps=given.steps, shares=shares, scale=SCALE_NOTES[given.scale])


def _how(given: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """The command with its folders named DATA and ENV, and the machine."""
    return [
        "## How this page is made",
        "",
        "```",
        command(given, overrides),
        "```",
        "",
        HOW_NOTE,
        "",
        *stage1_lines(given),
        f"Machine: {machine()}; {given.threads} of the cores used.",
        "",
    ]


HOW_NOTE = (
    "It resumes where it was stopped. `DATA` is the folder of the datasets, `ENV` that of the peers' environments "
    "([benchmarks/peers/README.md](../benchmarks/peers/README.md)); a backbone for `--start` comes from "
    "`ssl/train.py` and `ssl/export_backbone.py`, its crops from `dinocell curate`, for instance as in the card of "
    "[`cells`](../dinocell/models/packaged/cells/README.md)."
)


def stage1_lines(given: argparse.Namespace) -> list[str]:
    """How the backbones of --start were trained, where stage 1 left its config.yaml beside them."""
    lines = []
    fixed = ["data.root=CROPS", "output_dir=runs/stage1"]
    for name, _, file in (text.partition("=") for text in given.start):
        recipe = Path(file).parent / "config.yaml"
        if file and recipe.is_file():
            command = recipe_command("ssl/train.py", PretrainConfig, recipe, fixed)
            lines += [f"`{name}` was trained by", "", "```", command, "```", ""]
    return lines


def command(given: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The command line that makes the page, without this machine's folders."""
    roots = " ".join(f"DATA/{Path(root).resolve().name}" for root in given.data)
    starts = [text.partition("=") for text in given.start]
    shown = " ".join(f"{name}={Path(file).name}" if file else name for name, _, file in starts)
    parts = [f"python benchmarks/results.py --data {roots}"]
    parts += [f"--peer {peer}=ENV/{peer}/bin/python" for peer in (text.partition("=")[0] for text in given.peer)]
    parts += [f"--model {Path(model).name}" for model in given.model]
    parts += [f"--start {shown}", f"--seconds {given.seconds:g}"]
    for name in ("peer_seeds", "fractions", "seeds"):
        parts.append(f"--{name.replace('_', '-')} " + " ".join(f"{value:g}" for value in getattr(given, name)))
    parts += [f"--steps {given.steps}", f"--images {given.images}", f"--scale {given.scale}"]
    parts += [f"--variant {' '.join(variant)}" for variant in given.variant]
    parts.append(f"--threads {given.threads}")
    return " \\\n    ".join([*parts, f"--config {given.config}", *overrides, "--out runs/results"])


def machine() -> str:
    """Processor, cores, GPU and torch in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{model}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def _state(missing: list[str]) -> list[str]:
    if not missing:
        return []
    return [f"Not finished yet, and left out below: {', '.join(f'`{name}`' for name in missing)}.", ""]


def _pca_figure(given: argparse.Namespace, results: list[Result], path: Path) -> bool:
    """Draw backbones before and after fine-tuning with all labels, first seed; False where their runs are gone."""
    full = [r for r in results if r.fraction == max(x.fraction for x in results)]
    first = {r.method: r for r in sorted(full, key=lambda r: -r.seed)}
    backbones: dict[str, VisionTransformer] = {}
    for start in dict.fromkeys(text.partition("=")[0] for text in given.start):
        folder = Path(first[start].facts["run"]) / "model" if start in first else Path("absent")
        if not is_model_folder(folder):
            continue
        tuned = load_model_folder(folder)[0].backbone.eval()
        file = dict(text.partition("=")[::2] for text in given.start)[start]
        if file:
            before = load_backbone(file, patch_size=tuned.patch_size, in_channels=tuned.in_channels).eval()
        else:
            torch.manual_seed(first[start].seed)
            before = VisionTransformer(tuned.config).eval()
        backbones |= {start: before, f"{start}, fine-tuned": tuned}
    if not backbones:
        return False
    images = [_cells_in_sight(test_items(root, 1)[0]) for root in given.data]
    tokens = {name: [patch_tokens(net, image, torch.float32) for image in images] for name, net in backbones.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [Path(root).resolve().name for root in given.data]
    cv2.imwrite(str(path), pca_grid(images, names, tokens, shared=False, height=200)[..., ::-1])
    return True


def _cells_in_sight(item: LabelledItem) -> np.ndarray:
    """The part of an image with most labelled pixels, uint8, PCA_SIDE or the image's shorter side."""
    gray = to_gray(read_image(item.image))
    side = min(PCA_SIDE, *gray.shape) // 8 * 8
    cells = cv2.boxFilter((read_labels(item.mask) > 0).astype(np.float32), -1, (side, side), anchor=(0, 0))
    y, x = np.unravel_index(
        cells[: gray.shape[0] - side + 1, : gray.shape[1] - side + 1].argmax(),
        (gray.shape[0] - side + 1, gray.shape[1] - side + 1),
    )
    return central(gray if gray.dtype == np.uint8 else to_uint8(gray), side, (int(y), int(x)))
