"""From a finished fine-tuning run to a packaged model: half precision, scores on test splits, card.

    python benchmarks/package_model.py runs/finetune --out dinocell/models/packaged/cells --licence Apache-2.0 \
        --test DATA/nuclei DATA/phase … [--card CARD.md] [--like MODEL] [--work runs/package] [--device cpu]

The weights are stored in half precision first, and what is stored is scored: every image of the test splits as
`dinocell segment` sees it with no option given, so with the model's own estimate of scale, beside Otsu + watershed.
Scores, licence and the data's licences go into config.json, from where `dinocell models` reads them; the card gets the
sections `Network and run` and `Scores on the test splits` and the table `| labelled data |`. All other words of the
card are kept: write there what was trained before (stage 1, hours, earlier runs) and where the model fails. The card
is the one of --card, else the one that lies in OUT, else a new one. Nothing is put into OUT before all is done.

What the run does not know of a dataset (its modality, licence, source: there was no dataset.yaml) is taken from the
model folder --like, by default the one in OUT; what is unknown there too is warned of.

Scoring is kept in WORK by the weights' checksum: run it again after changing words, or after a kill.
A dataset of --test that the model was not trained on is listed apart.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recipes import recipe_command

from dinocell.core import log
from dinocell.core.config import load as load_config
from dinocell.core.errors import ConfigError, DataError, run_main
from dinocell.core.files import AtomicFolder, atomic_write_text, sha256_of
from dinocell.core.records import as_json
from dinocell.datasets.labelled import open_dataset
from dinocell.evaluation import evaluate_model
from dinocell.finetune import FinetuneConfig
from dinocell.models import ModelCard, halve_model_folder
from dinocell.models.folder import WEIGHTS_NAME, is_model_folder
from dinocell.models.packaged import find_model, model_info
from dinocell.models.training_record import ScoreTable, Training
from dinocell.segmentation import load_model
from dinocell.training.progress import read_metrics

SCORES = ("MMA", "SEG", "DET", "AP50", "AP75", "PQ")
SHOWN = ("MMA", "SEG", "DET", "AP50")
KINDS = {"macro": "mean over images", "pooled": "pooled"}
SCORES_NOTE = (
    "Never trained or tuned on; `benchmarks/package_model.py`, the stored weights as `dinocell segment` uses them "
    "without options. Otsu's threshold with a watershed beside it."
)
MACRO_IS = "mean over datasets of the mean over images"


def main() -> None:
    """Halve, score, describe, put in place."""
    given = parse()
    source = find_model(str(given.run))
    for root in given.test:  # a wrong path shows now
        open_dataset(root, "test")
    draft = given.work / "model"
    shutil.rmtree(draft, ignore_errors=True)
    halve_model_folder(source, draft)
    found = {}
    for root in given.test:
        name, entry = scored(draft, root, given.work, given.device)
        found[name] = entry
    like = given.like or given.out
    known = ModelCard.read(like).training if is_model_folder(like) else Training()
    card = ModelCard.read(draft)
    card = replace(card, training=with_sources(card.training, known), licence=given.licence)
    card = replace(card, test=test_scores(card, found, draft))
    card.write(draft)
    old = given.card or given.out / "README.md"
    text = old.read_text(encoding="utf-8") if old.is_file() else new_card(given.out.name)
    run = source.parent if source.name == "model" else source
    for file in draft.glob("*.md"):
        file.unlink()
    atomic_write_text(draft / "README.md", with_sections(text, card, found, draft, run))
    load_model(draft)  # what does not load is not put in place
    put(draft, given.out)
    log.info(f"{given.out}: {card.test.mean}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of fine-tuning, or its model folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the packaged model; it is replaced")
    parser.add_argument("--licence", required=True, help="of the weights, an SPDX name")
    parser.add_argument("--test", nargs="+", required=True, help="datasets whose test splits are scored")
    parser.add_argument("--like", type=Path, help="model folder that knows the data's licences; default: OUT")
    parser.add_argument("--card", type=Path, help="Markdown file with the words of the card")
    parser.add_argument("--work", type=Path, default=Path("runs/package"), help="scores and label images stay here")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.card and not given.card.is_file():
        raise ConfigError(f"--card: {given.card} does not exist; leave it out for a new card, or for the one in --out")
    return given


def with_sources(training: Training, like: Training) -> Training:
    """The training with modality, licence and source of its data, where another model's training knows them."""
    known = {data.name: data for data in like.datasets}
    datasets = []
    for data in training.datasets:
        other = known.get(data.name, data)
        unknown = [key for key in ("modality", "licence", "source") if getattr(data, key) in ("", "unknown")]
        datasets.append(replace(data, **{key: getattr(other, key) for key in unknown}))
        if datasets[-1].licence in ("", "unknown"):
            log.warning(f"{data.name}: its licence is not known; name it in dataset.yaml or --like a model that does")
    return replace(training, datasets=tuple(datasets))


# ---- scores ----


def scored(model: Path, root: str, work: Path, device: str) -> tuple[str, dict[str, Any]]:
    """Name of the dataset, and of the model and of Otsu + watershed: kind → score → value; images; their difference.

    Raises:
        DataError: an image could not be segmented, so the scores would be of others.
    """
    weights = sha256_of(model / WEIGHTS_NAME)
    card = ModelCard.read(model)
    decoding = json.dumps(
        as_json([card.objective, card.preprocess, card.rescale, card.overlap, card.views, card.training])
    )
    name = open_dataset(root, "test")[0].dataset.name
    folder = work / weights[:12] / name
    done = folder / "done.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != decoding:
        evaluate_model(model, root, split="test", out=folder, device=device, with_baseline=True)
        atomic_write_text(done, json.dumps(decoding))
    summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if summary.get("problems"):
        raise DataError(f"{root}: {summary['problems'][0]}")
    blocks = list(summary["predictions"].values())
    tools = dict(zip(("model", "otsu"), blocks, strict=True))
    return name, {
        "images": blocks[0]["images"],
        "difference": next(iter(summary["differences"].values()), {}).get("macro", {}),
        **{
            tool: {kind: {key: block[f"metrics_{kind}"][key] for key in SCORES} for kind in KINDS}
            for tool, block in tools.items()
        },
    }


def test_scores(card: ModelCard, found: dict[str, dict[str, Any]], model: Path) -> ScoreTable:
    """Scores for the card. The means are over the datasets that the model was trained on."""
    trained = [data.name for data in card.training.datasets]
    known = [name for name in found if name in trained] or list(found)

    def table(kind: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
        return {n: {k: round(v, 4) for k, v in found[n]["model"][kind].items() if v is not None} for n in names}

    def mean(kind: str) -> dict[str, float]:
        rows = [found[name]["model"][kind] for name in known]
        return {
            k: round(statistics.fmean(row[k] for row in rows), 4) for k in SCORES if None not in [r[k] for r in rows]
        }

    further = {
        "pooled": {"mean": mean("pooled"), "by_dataset": table("pooled", known)},
        "not_trained_on": table("macro", [name for name in found if name not in known]),
        "images": {name: found[name]["images"] for name in found},
        "weights_sha256": sha256_of(model / WEIGHTS_NAME),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return ScoreTable(mean=mean("macro"), mean_is=MACRO_IS, by_dataset=table("macro", known), other=further)


# ---- card ----


def new_card(name: str) -> str:
    """A card without words yet."""
    use = f"```\ndinocell segment IMAGES --out RESULTS --model {name}\n```"
    return f"# {name}\n\n{use}\n\n## Training\n\n## Where it fails\n"


def with_sections(text: str, card: ModelCard, found: dict[str, dict[str, Any]], model: Path, run: Path) -> str:
    """The card with the sections and the table of this script; everything else as it was."""
    text = replaced(text, "Network and run", run_section(model, run), before="Training")
    text = replaced(text, "Scores on the test splits", score_section(card, found), before="Where it fails")
    data = "\n".join(data_table(card.training))
    pattern = re.compile(r"^\| labelled data \|.*\n(?:\|.*\n?)*", re.MULTILINE)
    if pattern.search(text):
        return pattern.sub(lambda _: data + "\n", text, count=1)
    return replaced(text, "Data", data, before="Scores on the test splits")


def replaced(text: str, heading: str, body: str, *, before: str) -> str:
    """The text with the body of `## heading` exchanged; a new one is put before `## before`, or at the end."""
    section = f"## {heading}\n\n{body.strip()}\n\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section, text, count=1).rstrip() + "\n"
    place = re.search(rf"^## {re.escape(before)}$", text, re.MULTILINE)
    at = place.start() if place else len(text)
    lead = text[:at].rstrip() + "\n\n"
    return (lead + section + text[at:]).rstrip() + "\n"


def run_section(model: Path, run: Path) -> str:
    """What config.json, config.yaml and metrics.jsonl tell of the network and of its last training."""
    info = model_info(model)
    card, training = info.card, info.card.training
    network = f"{info.backbone}, {info.parameters / 1e6:.1f} M parameters, {card.objective.kind}"
    window = f"windows of {card.crop_size} px with {card.overlap} px of overlap"
    if card.views > 1:
        window += f", each in {card.views} views"
    lines = [f"{network}, {window}; {info.bytes / 1e6:.1f} MB ({info.dtype}).", ""]
    chosen = ", ".join(f"{key} {getattr(card.objective, key):g}" for key in ("threshold", "flow_error", "min_size"))
    if (run / "config.yaml").is_file():
        roots = load_config(FinetuneConfig, str(run / "config.yaml"), []).data.root
        data = f"data.root=[{','.join(f'DATA/{Path(root).name}' for root in roots)}]"
        command = recipe_command("finetune/train.py", FinetuneConfig, run / "config.yaml", [data, "output_dir=RUN"])
        lines += ["```", command, "```", ""]
    rows = read_metrics(run / "metrics.jsonl", "train")
    took = f"{rows[-1]['seconds'] / 3600:.1f} h, {rows[-1]['step']} steps; " if rows and "seconds" in rows[-1] else ""
    lines.append(
        f"{took}the model of step {training.step} was kept; seed {training.seed}, started from "
        f"{training.initial_weights}, {training.date}, torch {training.torch}. Decoding: {chosen}."
    )
    return "\n".join(filled(line) for line in lines)


def filled(line: str) -> str:
    """A paragraph in lines of at most 120 characters; tables and commands as they are."""
    return line if line.startswith(("|", "python", "    ")) else textwrap.fill(line, 120, break_on_hyphens=False)


def data_table(training: Training) -> list[str]:
    """The labelled data the model was trained on."""
    lines = ["| labelled data | modality | training images | licence | source |", "|---|---|---|---|---|"]
    rows = (f"| {d.name} | {d.modality} | {d.train_images} | {d.licence} | {d.source} |" for d in training.datasets)
    return [*lines, *rows]


def score_section(card: ModelCard, found: dict[str, dict[str, Any]]) -> str:
    """Two tables (mean over images, pooled), the differences from Otsu with intervals, and what loses to Otsu."""
    trained = set(card.test.by_dataset)
    lines = [SCORES_NOTE, ""]
    for kind, words in KINDS.items():
        what = "each image counts the same" if kind == "macro" else "each cell counts the same"
        lines += [f"{words.capitalize()} ({what}):", ""]
        lines += [f"| dataset | images | {' | '.join(SHOWN)} | Otsu: MMA | Otsu: AP50 |", "|---" * 8 + "|"]
        for name, entry in found.items():
            mine, otsu = entry["model"][kind], entry["otsu"][kind]
            shown = [number(mine[key]) for key in SHOWN] + [number(otsu[key]) for key in ("MMA", "AP50")]
            mark = "" if name in trained else " (not trained on)"
            lines.append(f"| {name}{mark} | {entry['images']} | {' | '.join(shown)} |")
        lines.append("")
    differences = [(name, entry["difference"]) for name, entry in found.items() if entry["difference"]]
    told = [f"{name}: MMA {interval(its['MMA'])}, AP50 {interval(its['AP50'])}" for name, its in differences]
    if told:
        lines += [f"The model minus Otsu, mean over images, 95 % bootstrap interval: {'; '.join(told)}.", ""]
    losses = [
        f"{name} ({key}, {words}: {number(entry['model'][kind][key])} against {number(entry['otsu'][kind][key])})"
        for name, entry in found.items()
        for kind, words in KINDS.items()
        for key in ("MMA", "AP50")
        if (entry["model"][kind][key] or 0) <= (entry["otsu"][kind][key] or 0)
    ]
    if losses:
        lines.append(f"No better than Otsu + watershed: {'; '.join(losses)}.")
    return "\n".join(filled(line) for line in lines)


def number(value: float | None) -> str:
    """Three digits; nothing where there is no such score."""
    return "" if value is None else f"{value:.3f}"


def interval(values: Sequence[float]) -> str:
    """Value and bounds, with signs."""
    value, low, high = values
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def put(draft: Path, out: Path) -> None:
    """Exchange the folder OUT for a copy of the draft."""
    with AtomicFolder(out) as fresh:
        shutil.copytree(draft, fresh, dirs_exist_ok=True)


if __name__ == "__main__":
    run_main(main)
