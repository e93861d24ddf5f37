"""Adaptation from start to end; every part that is finished is kept, and the same command resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinocell import curation, finetune, models, pretrain
from dinocell.adapt.align import adapted_model
from dinocell.adapt.config import AdaptConfig
from dinocell.adapt.image_scale import AsItIs, at_scale, images_scale
from dinocell.adapt.judge import (
    Stability,
    Verdict,
    judge_control,
    judge_scores,
    judge_stability,
    read_gray_images,
    score_items,
    stability,
)
from dinocell.adapt.pseudo import write_pseudo_labels
from dinocell.adapt.report import Findings, write_report
from dinocell.core import log
from dinocell.core.config import flatten, to_dict, to_yaml
from dinocell.core.errors import CheckpointError, ConfigError
from dinocell.core.files import AtomicFolder, atomic_write_text, load_file, sha256_of
from dinocell.datasets.labelled import LabelledItem, open_dataset
from dinocell.metrics import ImageScores
from dinocell.models.packaged import find_model
from dinocell.pretrain.monitor.probes import cell_probe
from dinocell.segmentation import load_model
from dinocell.training.outcome import RunOutcome, Stopped
from dinocell.training.progress import read_metrics
from dinocell.training.resume import check_resumable


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Verdict of an adaptation, with the numbers behind it."""

    verdict: Verdict
    scores: Mapping[str, list[ImageScores]]  # of labelled images, by model; empty without labels
    stability: Mapping[str, Stability]  # by model; empty with labels
    images: list[Path]


def run(config: AdaptConfig) -> RunOutcome:
    """Adapt; writes `model/` (the model to use), `report.html` and `summary.json` into `config.out`.

    Raises:
        ConfigError: settings or folders that do not fit. DataError: images that cannot be used.
        CheckpointError: a damaged model or checkpoint.
    """
    out = Path(config.out)
    for root in config.labels:  # now, not after an hour of stage 1
        open_dataset(root, "train", seed=config.finetune.seed)
    _claim(out, config)
    try:
        best_step, probes = _train(out, config)
    except Stopped as stopped:
        log.info("stopped; the same command resumes from here")
        return RunOutcome(folder=out, stopped_by=stopped.by)
    summary = out / "summary.json"
    if not summary.is_file():
        found = _judge(out, config, best_step, probes)
        _choose(out, config, found.verdict)
        write_report(
            Findings(
                out=out,
                config=config,
                verdict=found.verdict,
                scores=found.scores,
                stability=found.stability,
                images=found.images,
                best_step=best_step,
            )
        )
        atomic_write_text(summary, json.dumps(_summary(found, best_step), indent=1) + "\n")
    _tell(out, json.loads(summary.read_text(encoding="utf-8")))
    return RunOutcome(folder=out, step=best_step)


def _summary(found: Judgement, best_step: int) -> dict[str, Any]:
    """Content of summary.json: the verdict, and the counts behind the scores, image by image."""
    verdict = found.verdict
    return {
        "choice": verdict.choice,
        "helped": verdict.helped,
        "why": list(verdict.sentences),
        "best_step": best_step,
        "images": {name: [asdict(score) for score in scores] for name, scores in found.scores.items()},
    }


def _tell(out: Path, summary: Mapping[str, Any]) -> None:
    log.info("")
    for sentence in summary["why"]:
        log.info(sentence)
    log.info(f"model to use ({summary['choice']}): {out / 'model'} · report: {out / 'report.html'}")


def _claim(out: Path, config: AdaptConfig) -> None:
    """Write config.yaml, or refuse a folder that contains an adaptation with other settings."""
    file = out / "settings.json"
    if file.is_file():
        # Finished parts are not run again, so only what changes nothing that is learned may differ.
        check_resumable(
            config,
            json.loads(file.read_text(encoding="utf-8")),
            where=f"--out: {str(out)!r} contains an adaptation",
            other="another folder",
            may_change=("neutral",),
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {str(out)!r} cannot be made: {error.strerror}") from error
    atomic_write_text(file, json.dumps(flatten(to_dict(config)), indent=1))
    atomic_write_text(out / "config.yaml", to_yaml(config))


def _train(out: Path, config: AdaptConfig) -> tuple[int, list[dict[str, Any]]]:
    """Everything but the judgement; returns the step of the best teacher (0: stage 1 improved nothing), the probes."""
    model = load_model(config.start, device=config.finetune.device)
    found = images_scale(model, config)
    config = at_scale(config, found, model.card)
    _step(1, "curate: the sharpest crops of your images")
    _once(out / "crops" / "done.json", lambda: curation.run(config.curate))
    if not config.labels:
        _step(2, "what the model sees in them now")
        write_pseudo_labels(model, out / "crops", out / "pseudo", config.finetune.seed, found.scale)
    _step(3, f"stage 1 from the model's backbone, at most {config.pretrain.optim.total_steps} steps")
    best_step = _stage_one(out, config)
    probes = read_metrics(out / "stage1" / "metrics.jsonl", "probe")
    if best_step:
        _step(4, "the decoder, trained on your labels" if config.labels else "the decoder, re-aligned if it has to be")
        adapted_model(config, lambda: _finetuned(config.finetune))
    if config.labels and config.control:
        _step(5, "training on your labels without stage 1, for comparison")
        plain = replace(config.finetune.backbone, weights="")
        _finetuned(replace(config.finetune, output_dir=str(out / "control"), backbone=plain))
    return best_step, probes


def _step(number: int, words: str) -> None:
    log.info(f"\n[{number}] {words}")


def _once(marker: Path, action: Callable[[], object]) -> None:
    if not marker.is_file():
        action()
        atomic_write_text(marker, "{}\n")


def _stage_one(out: Path, config: AdaptConfig) -> int:
    start = out / "start" / "backbone.safetensors"
    folder = find_model(config.start)
    if not start.is_file():
        model, _ = models.load_model_folder(folder)
        parent = sha256_of(folder / "model.safetensors")
        models.save_backbone(start, model.backbone, {"parent_sha256": parent})
    settings = _with_usable_monitor(config)
    _once(out / "stage1" / "done.json", lambda: pretrain.run(settings).finished())
    best = out / "stage1" / "checkpoints" / "best.pt"
    if not best.is_file():
        raise CheckpointError(f"{best}: no teacher was kept; set pretrain.monitor.best_by, or delete {out / 'stage1'}")
    step = int(load_file(best)["step"])
    if not (out / "stage1" / "backbone.safetensors").is_file():
        models.export_backbone(out / "stage1")
    return step


def _with_usable_monitor(config: AdaptConfig) -> pretrain.PretrainConfig:
    """Watch the rank where cells fill the images or none are seen, so that patches cannot be distinguished, instead."""
    settings = config.pretrain
    try:
        cell_probe(settings)
    except ConfigError as error:
        log.warning(f"{error}; the effective rank of the patch features is watched instead")
        monitor = replace(settings.monitor, labelled=(), best_by="rankme_patch", patience=0)
        return replace(settings, monitor=monitor)
    return settings


def _finetuned(settings: finetune.FinetuneConfig) -> None:
    folder = Path(settings.output_dir)
    _once(folder / "done.json", lambda: finetune.run(settings).finished())


def _nothing_learnt(probes: list[dict[str, Any]], wanted: str) -> tuple[str, ...]:
    """In words: the probe that chooses the teacher, `wanted` if it could be had, was never above its first value."""
    named = [name for name in probes[0] if name not in ("step", "split")]
    watched = next(name for name in (wanted, "rankme_patch", *named) if name in named)
    later = max(row[watched] for row in probes[1:]) if probes[1:] else probes[0][watched]
    values = f"{watched} was {probes[0][watched]:.3f} at the start and at best {later:.3f} after that"
    return (
        f"Stage 1 never improved the features by the probe that watches them: {values}. So nothing of it is kept.",
        "It did not help.",
    )


def _judge(out: Path, config: AdaptConfig, best_step: int, probes: list[dict[str, Any]]) -> Judgement:
    _step(6, "before and after")
    device = config.finetune.device
    places = {"original": find_model(config.start)}
    if best_step:
        places["adapted"] = out / "adapted"
    if config.labels and config.control:
        places["control"] = out / "control" / "model"
    unchanged = () if best_step else _nothing_learnt(probes, config.pretrain.monitor.best_by)
    if len(places) == 1:
        words = (*unchanged, "Use the original model.")
        verdict = Verdict(choice="original", helped=False, sentences=words)
        return Judgement(verdict=verdict, scores={}, stability={}, images=_check_images(out, config))
    loaded = {name: load_model(path, device=device) for name, path in places.items()}
    if config.labels:
        items = held_out(config.labels, config.finetune.seed)
        scores = {name: score_items(model, items, name) for name, model in loaded.items()}
        if best_step:
            verdict, _ = judge_scores(scores)
        else:
            alone = judge_control(scores["original"], scores["control"])
            verdict = replace(
                alone, sentences=(*_nothing_learnt(probes, config.pretrain.monitor.best_by), *alone.sentences)
            )
        return Judgement(verdict=verdict, scores=scores, stability={}, images=[item.image for item in items])
    paths = _check_images(out, config)
    images = read_gray_images(paths)
    segmenters = {name: AsItIs(model) for name, model in loaded.items()}  # the crops are at the model's scale
    before = [segmenters["original"].segment(image).labels for image in images]
    steadiness = {name: stability(model, images, before) for name, model in segmenters.items()}
    verdict, _ = judge_stability(steadiness["original"], steadiness["adapted"])
    return Judgement(verdict=verdict, scores={}, stability=steadiness, images=paths)


def _check_images(out: Path, config: AdaptConfig) -> list[Path]:
    """Some of the val crops, evenly picked; none where there are labels to judge by."""
    if config.labels:
        return []
    paths = sorted((out / "pseudo" / "val" / "images").iterdir())
    return [paths[int(index)] for index in np.linspace(0, len(paths) - 1, min(len(paths), config.check_images))]


def held_out(roots: tuple[str, ...], seed: int) -> list[LabelledItem]:
    """The test splits; the val split of a dataset without one."""
    found: list[LabelledItem] = []
    for root in roots:
        try:
            found += open_dataset(root, "test", seed=seed)
        except ConfigError:
            log.warning(f"{root} has no test split: its val split, which also chose the decoding, judges instead")
            found += open_dataset(root, "val", seed=seed)
    return found


def _choose(out: Path, config: AdaptConfig, verdict: Verdict) -> Path:
    """Copy the recommended model to OUT/model and note there where it comes from."""
    source = {
        "original": find_model(config.start),
        "adapted": out / "adapted",
        "control": out / "control" / "model",
    }[verdict.choice]
    target = out / "model"
    adaptation = {
        "from": Path(config.start).name,
        "choice": verdict.choice,
        "helped": verdict.helped,
        "why": list(verdict.sentences),
    }
    with AtomicFolder(target) as fresh:
        shutil.copytree(source, fresh, dirs_exist_ok=True)
        replace(models.ModelCard.read(fresh), adaptation=adaptation).write(fresh)
    return target
