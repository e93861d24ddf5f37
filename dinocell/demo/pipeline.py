"""`dinocell demo`: both stages, evaluation and segmentation on the embedded sample, ending in a page with figures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dinocell.core import config, log
from dinocell.core.files import atomic_write_text
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.demo.report import write_report
from dinocell.training.outcome import RunOutcome, Stopped

SAMPLE = {"n_unlabelled": 36, "n_train": 72, "n_val": 6, "n_test": 18, "size": 256}
# Half of ViT-Tiny's blocks: what two cores can teach in the demo's minutes.
VIT: dict[str, Any] = {"arch": "vit_tiny", "depth": 6, "patch_size": 8, "in_channels": 1, "image_size": 128}


def run(out: Path, seed: int = 0) -> RunOutcome:
    """Run the pipeline in `out`; finished parts of an earlier, interrupted demo are kept and continued.

    The report is `out/report.html`, the held-out scores are in `out/evaluation/evaluation.json`. The outcome names the
    signal that stopped it early.
    """
    start = time.monotonic()
    try:
        scores = _pipeline(out, seed)
    except Stopped as stopped:
        return RunOutcome(folder=out, stopped_by=stopped.by)
    seconds = time.monotonic() - start
    report = write_report(out, scores, seconds)
    _tell(out, report, scores, seconds)
    return RunOutcome(folder=out)


def _pipeline(out: Path, seed: int) -> dict[str, Any]:
    sample = out / "sample"
    _step(1, "the embedded sample: phase contrast, bright-field and fluorescence with exact labels")
    _sample(sample, seed)
    _step(2, "curate: the sharpest crop of every unlabelled field")
    _curate(sample / "unlabelled", out / "crops")
    _step(3, "stage 1: self-supervised pretraining on the crops")
    _pretrain(out / "crops", out / "pretrain", seed)
    _step(4, "export the teacher's backbone")
    backbone = _export(out / "pretrain")
    _step(5, "stage 2: fine-tuning on the labelled images")
    _finetune(sample / "labelled", backbone, out / "finetune", seed)
    _step(6, "evaluate on held-out images, beside Otsu + watershed")
    scores = _evaluate(out / "finetune" / "model", sample / "labelled", out / "evaluation")
    _step(7, "segment the held-out images")
    _segment(sample / "labelled" / "test" / "images", out / "finetune" / "model", out / "segmented")
    return scores


def _step(number: int, words: str) -> None:
    log.info(f"\n[{number}/7] {words}")


def _sample(folder: Path, seed: int) -> None:
    done = folder / "complete.json"
    wanted = {**SAMPLE, "seed": seed}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == wanted:
        log.info(f"kept from before: {folder}")
        return
    write_sample(folder, **wanted)
    atomic_write_text(done, json.dumps(wanted))
    images = sum(wanted[name] for name in ("n_train", "n_val", "n_test"))
    log.info(f"{wanted['n_unlabelled']} unlabelled fields and {images} labelled images in {folder}")


def _curate(source: Path, out: Path) -> None:
    from dinocell import curation

    curation.run(curation.CurateConfig(sources=(str(source),), out=str(out), size=384))


def _pretrain(crops: Path, out: Path, seed: int) -> None:
    from dinocell import pretrain

    recipe = {
        "output_dir": str(out),
        "seed": seed,
        "data": {"root": [str(crops)], "workers": 1},
        "model": {**VIT, "layerscale_init": 1.0},
        "augment": {"global_size": 96, "local_size": 48, "local_crops": 4, "vertical_flip": 0.5, "rotate90": True},
        "dino_head": {"prototypes": 1024, "hidden": 512, "bottleneck": 128},
        "ibot_head": {"prototypes": 1024, "hidden": 512, "bottleneck": 128},
        "teacher": {"momentum": 0.98, "temperature_warmup_epochs": 0.5},
        "optim": {
            "epochs": 1,
            "epoch_steps": 60,
            "batch_size": 12,
            "base_lr": 5e-4,
            "lr_rule": "none",
            "warmup_epochs": 0.2,
            "freeze_last_layer_epochs": 0.05,
        },
        "checkpoint_every": 30,
        "log_every": 5,
    }
    pretrain.run(config.from_dict(pretrain.PretrainConfig, recipe)).finished()


def _export(run_dir: Path) -> Path:
    from dinocell import models

    path = models.export_backbone(run_dir, to="backbone")
    log.info(f"backbone: {path}")
    return path


def _finetune(labelled: Path, backbone: Path, out: Path, seed: int) -> None:
    from dinocell import finetune

    recipe = {
        "output_dir": str(out),
        "seed": seed,
        "crop_size": 128,
        "input_size": 128,
        "overlap": 32,
        "data": {"root": [str(labelled)]},
        "backbone": {"weights": str(backbone)},
        "decoder": {"kind": "bilinear", "neck_width": 128, "detail_width": 16},
        "train": {
            "steps": 480,
            "batch_size": 8,
            "lr": 1e-3,
            "warmup": 0.05,
            "weight_decay": 0.05,
            "clip_gradient": 1.0,
            "ema": 0.98,
            "checkpoint_every": 60,
        },
        "validate": {"times": 3, "panels": 3},
    }
    finetune.run(config.from_dict(finetune.FinetuneConfig, recipe)).finished()


def _evaluate(model: Path, labelled: Path, out: Path) -> dict[str, Any]:
    from dinocell import evaluation

    return evaluation.evaluate_model(model, labelled, split="test", out=out, with_baseline=True)


def _segment(images: Path, model: Path, out: Path) -> None:
    from dinocell import segmentation

    segmentation.run([str(images)], out, str(model), save=("labels", "overlay", "csv"))


def _tell(out: Path, report: Path, scores: dict[str, Any], seconds: float) -> None:
    tools = scores["predictions"]
    log.info(f"\ndone in {log.format_duration(seconds)}")
    for name, entry in zip(("DINOCell", *list(tools)[1:]), tools.values(), strict=True):
        log.info(f"  held-out MMA {entry['metrics']['MMA']:.3f}   {name}")
    log.info(f"  segmented  {out / 'segmented'}")
    log.info(f"  report     {report.resolve()}")
