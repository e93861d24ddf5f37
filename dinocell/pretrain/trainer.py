"""Stage 1 from start to end: one visible loop, one visible step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinocell.core import log
from dinocell.core.config import to_dict, to_yaml
from dinocell.core.device import autocast, choose_dtype
from dinocell.core.errors import DataError
from dinocell.core.files import atomic_write_text
from dinocell.models import VisionTransformer
from dinocell.pretrain.build import (
    contains_run,
    load_latest,
    load_state,
    make_backbone,
    make_optimizer,
    restore_backbone,
)
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.cost import image_flops, matmul_rate
from dinocell.pretrain.data.crops import Batch, CropDataset, MicroBatches, find_images, make_loader
from dinocell.pretrain.method.step_values import values_at
from dinocell.pretrain.method.student_teacher import StudentTeacher
from dinocell.pretrain.monitor.best_teacher import BestTeacher, announce
from dinocell.pretrain.monitor.probes import Probes
from dinocell.pretrain.monitor.ranks import FeatureMonitor
from dinocell.pretrain.report import report_images, save_before, token_panel, write_report
from dinocell.pretrain.sharding import (
    load_whole_optimizer_state,
    shard,
    synchronise_gradients,
    whole_backbone,
    whole_optimizer_state,
    whole_state,
)
from dinocell.training import distributed
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.optim import clip_gradients, set_schedule
from dinocell.training.outcome import RunOutcome, StopName
from dinocell.training.progress import RunLogger, StepTimer
from dinocell.training.resume import refuse_unused
from dinocell.training.rng import rng_state, seed_generators, set_rng_state
from dinocell.training.schedules import scaled_learning_rate
from dinocell.training.signals import StopSignal

_SHOWN = ("loss", "dino_local", "dino_global", "ibot", "koleo", "gram", "lr")


def run(config: PretrainConfig) -> RunOutcome:
    """Pretrain on a folder of images, or continue where the run in `output_dir` was interrupted.

    Writes `config.yaml`, `metrics.jsonl`, `checkpoints/` and, at the end, `report.html`. On SIGTERM or SIGUSR2 a
    checkpoint is written and the function returns early; the outcome names the signal.

    Raises:
        ConfigError: settings, weights or folders that do not fit.
        DataError: no image can be read, or too many steps had to be skipped.
        CheckpointError: a checkpoint cannot be written or does not fit.
    """
    trainer = Trainer(config)
    stopped_by = trainer.train()
    if not stopped_by:
        teacher = whole_backbone(_backbone(trainer.model.teacher))
        if distributed.is_main():
            path = write_report(trainer.folder, trainer.config, teacher, trainer.dtype)
            log.info(f"done: {trainer.step} steps; report in {path}")
    trainer.logger.close()
    distributed.barrier()
    return RunOutcome(folder=trainer.folder, step=trainer.step, stopped_by=stopped_by)


class Trainer:
    """Everything that changes during a run."""

    def __init__(self, config: PretrainConfig) -> None:
        self.world = distributed.setup(config.device)
        self.device = self.world.device
        self.dtype, dtype_reason = choose_dtype(config.precision, self.device)
        self.folder = Path(config.output_dir)
        self.paths = find_images(config.data.root)
        self.manager = CheckpointManager(self.folder / "checkpoints", config.keep_checkpoints)
        seed_generators(config.seed)

        found = load_latest(config)
        backbone = make_backbone(config) if found is None else restore_backbone(found[1])
        self.asked_model = to_dict(config.model) if found is None else found[1]["asked_model"]
        self.config = config = dataclasses.replace(config, model=backbone.config)
        self.model = StudentTeacher(backbone, config).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.image_flops = image_flops(config, backbone)
        self.monitor = FeatureMonitor(backbone.embed_dim, self.device)
        self.probes = Probes(config, self.paths)
        self.best = BestTeacher(config, self.probes.names)
        self.step_images = config.optim.batch_size * self.world.world_size * config.optim.accumulate
        self.step = self.samples = self.skipped = 0
        self.unreadable: dict[str, str] = {}
        self.last_ranks: dict[str, float] | None = None
        if found is not None:
            step, state, changes = found
            same_measure = self._resume(step, state)
            if step == config.optim.total_steps or self.best.should_stop:
                refuse_unused(changes, contains_run(config))
            if not same_measure:
                self.manager.set_best_aside()
        backbone.activation_checkpointing = config.activation_checkpointing
        if config.compile:
            _backbone(self.model.student).compile_blocks()
            _backbone(self.model.teacher).compile_blocks()
        self.peak_lr = scaled_learning_rate(config.optim.base_lr, self.step_images, config.optim.lr_rule)
        self.machine_rate = matmul_rate(self.device, self.dtype)
        self.logger = RunLogger(
            self.folder,
            config.optim.total_steps,
            enabled=distributed.is_main(),
            tensorboard=config.tensorboard,
            resume_step=self.step,
        )
        self.engine: nn.Module = self.model
        self._introduce(dtype_reason)
        self.sharded = config.parallel == "fsdp2" and self.world.world_size > 1
        if self.sharded:
            self._shard()
        self._set_backbone_trainable(self.step >= config.optim.freeze_backbone_steps)

    def train(self) -> StopName:
        """Run to the last step, or to a checkpoint after the signal that is returned; "" when the run is complete."""
        total, every = self.config.optim.total_steps, self.config.checkpoint_every
        batches, timer = self._batches(), StepTimer()
        if self.step == 0:
            self._probe()
        with StopSignal() as stop:
            while self.step < total and not self.best.should_stop:
                if self.step == self.config.optim.freeze_backbone_steps:
                    self._set_backbone_trainable(True)
                metrics = self.train_step(batches, timer)
                if self._log_due():
                    self._log(metrics, timer)
                if self._probe_due():
                    self._probe()
                ended = self.step == total or self.best.should_stop
                stopping = not ended and stop.requested()
                if self.step % every == 0 or ended or stopping:
                    self._save()
                if stopping:
                    log.info(f"{stop.name}: checkpoint of step {self.step} written; the same command continues")
                    break
        if stop.name:
            return stop.name
        if self.best.should_stop:
            log.info(
                f"stopped after step {self.step}: no better for {self.best.patience} tests ({self.best.describe()})"
            )
        return ""

    def train_step(self, batches: Iterator[Batch], timer: StepTimer) -> dict[str, float]:
        """One optimizer step on `accumulate` micro-batches; returns the metrics of the step, averaged over ranks."""
        optim = self.config.optim
        values = values_at(self.config, self.peak_lr, self.step)
        set_schedule(self.optimizer, values.lr, values.weight_decay, values.last_layer_lr)
        self.optimizer.zero_grad(set_to_none=True)
        terms: list[dict[str, torch.Tensor]] = []
        files: list[str] = []
        for micro in range(optim.accumulate):
            batch = self._next(batches, timer)
            files += batch.paths
            torch.manual_seed(self._micro_seed(micro))  # drop path: a function of the step, whatever came before
            with self._no_sync(micro < optim.accumulate - 1):
                with autocast(self.device, self.dtype):
                    output = self.engine(batch, values.temperature)
                (output.losses["loss"] / optim.accumulate).backward()
            terms.append(
                {k: v.detach() for k, v in output.losses.items()} | {"teacher_entropy": output.teacher_entropy}
            )
            self.monitor.observe(output.teacher_cls)
        metrics = _mean(terms)
        if self.sharded and self.step < optim.freeze_backbone_steps:
            for parameter in self.model.student["backbone"].parameters():
                parameter.grad = None
        metrics |= {f"grad_{name}": clip_gradients(part, optim.clip) for name, part in self.model.student.items()}
        good = all(math.isfinite(value) for value in metrics.values())
        if good:
            self.optimizer.step()
            self.model.update_teacher(values.momentum)
        self.model.update_centers(keep=good)
        self.step += 1
        self.samples += self.step_images
        timer.images += self.step_images
        if not good:
            self._skip(metrics, files)
        if self._log_due():
            self.last_ranks = self.monitor.values(output.teacher_patches)
            metrics |= self.last_ranks
        schedule = {"lr": values.lr, "weight_decay": values.weight_decay, "momentum": values.momentum}
        return metrics | schedule | {"teacher_temperature": values.temperature, "skipped_steps": self.skipped}

    def _log_due(self) -> bool:
        return self.step % self.config.log_every == 0 or self.step == self.config.optim.total_steps

    def _probe_due(self) -> bool:
        every = self.config.monitor.every
        return every > 0 and (self.step % every == 0 or self.step == self.config.optim.total_steps)

    def _probe(self) -> None:
        """Test the teacher's features; keep the teacher if they are the best so far. Alike on every rank."""
        if not self.config.monitor.every:
            return
        backbone = whole_backbone(_backbone(self.model.teacher))
        values = self.probes.measure(backbone, self.dtype)
        shown = self.config.tensorboard and distributed.is_main()
        if shown and (panel := token_panel(self.folder, backbone, self.dtype, f"step {self.step}")) is not None:
            self.logger.image(self.step, "patch tokens", panel)
        watched = values | ({} if self.last_ranks is None else self.last_ranks)
        if values:
            self.logger.log(self.step, values, split="probe")
            log.info(f"step {self.step}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if self.best.name in watched and self.best.observe(self.step, watched):
            state = {"teacher": whole_state(self.model.teacher), "config": to_dict(self.config)}
            self.manager.save_best(self.step, state)

    def _batches(self) -> Iterator[Batch]:
        sampler = MicroBatches(
            self.config,
            rank=self.world.rank,
            ranks=self.world.world_size,
            first_sample=self.samples,
            steps=self.config.optim.total_steps - self.step,
        )
        return iter(make_loader(CropDataset(self.paths, self.config), self.config, sampler, self.device))

    def _next(self, batches: Iterator[Batch], timer: StepTimer) -> Batch:
        with timer.waiting():
            batch = next(batches)
        for path, reason in batch.unreadable.items():
            if path not in self.unreadable:
                self.unreadable[path] = reason
                log.warning(f"{path} cannot be read and is replaced by another image: {reason}")
        if batch.failed:
            raise DataError(
                f"data.root: no image could be read in place of {len(batch.unreadable)} damaged ones, such as "
                f"{next(iter(batch.unreadable))!r}; check the files"
            )
        return batch.to(self.device)

    def _micro_seed(self, micro: int) -> int:
        key = (self.config.seed, self.step, self.world.rank, micro)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)

    def _no_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients only in the last micro-batch of a step."""
        if self.sharded:
            synchronise_gradients(self.model, not wanted)
        engine = self.engine
        return engine.no_sync() if wanted and isinstance(engine, DistributedDataParallel) else nullcontext()

    def _shard(self) -> None:
        """Share the loaded model and its optimizer's state out over the ranks."""
        state = self.optimizer.state_dict()
        shard(self.model, self.dtype)
        self.optimizer = make_optimizer(self.model, self.config)
        load_whole_optimizer_state(self.optimizer, state)

    def _set_backbone_trainable(self, trainable: bool) -> None:
        """Freeze or free the student's backbone; DDP looks at what needs gradients only when it is made.

        FSDP2 looks once, at its first step: there a frozen backbone's gradients are thrown away instead.
        """
        if self.sharded:
            return
        self.model.student["backbone"].requires_grad_(trainable)
        if self.world.world_size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.engine = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)

    def _skip(self, metrics: dict[str, float], files: list[str]) -> None:
        """Count a step whose loss or gradient was not finite, keep its file names, and stop after too many."""
        self.skipped += 1
        culprits = ", ".join(name for name, value in metrics.items() if not math.isfinite(value))
        record = self.folder / "skipped_steps.jsonl"
        every_file = [name for names in distributed.gather_objects(files) for name in names]
        if distributed.is_main():
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "not_finite": culprits, "files": every_file}) + "\n")
        log.warning(f"step {self.step} is skipped: {culprits} not finite; its files are listed in {record}")
        if self.skipped >= self.config.max_bad_steps:
            raise DataError(
                f"{self.skipped} steps had a NaN or infinite loss or gradient (max_bad_steps); the files of each are "
                f"in {str(record)!r}; look at them, or lower optim.base_lr and start from the last checkpoint"
            )

    def _log(self, metrics: dict[str, float], timer: StepTimer) -> None:
        for other in distributed.gather_objects(self.unreadable):
            self.unreadable |= other
        metrics["unreadable_images"] = len(self.unreadable)
        problem = self.monitor.warning(metrics) if "rankme_cls" in metrics else None
        if problem is not None:
            self.logger.warning(problem)
        lap = timer.lap()
        mfu = self.image_flops * lap.images_per_second / (self.machine_rate * self.world.world_size)
        timing = {**lap._asdict(), "mfu": mfu}
        self.logger.log(self.step, metrics)
        self.logger.log(self.step, timing, split="timing")
        shown = {name: metrics[name] for name in _SHOWN if name in metrics}
        self.logger.progress(
            self.step, shown, images_per_second=lap.images_per_second, data_wait=lap.data_wait, mfu=mfu
        )

    def _save(self) -> None:
        for other in distributed.gather_objects(self.unreadable):
            self.unreadable |= other
        state = {
            "teacher": whole_state(self.model.teacher),
            "student": whole_state(self.model.student),
            "centers": self.model.centers.state_dict(),
            "anchor": self.model.anchor.state_dict(),
            "optimizer": whole_optimizer_state(self.optimizer),
            "config": to_dict(self.config),
            "asked_model": self.asked_model,
            "samples": self.samples,
            "step_images": self.step_images,
            "skipped": self.skipped,
            "unreadable": self.unreadable,
            "monitor": self.monitor.state_dict(),
            "best": self.best.state_dict(),
            "last_ranks": self.last_ranks or {},
            "rng": rng_state(),
        }
        self.manager.save(self.step, state)
        if self.unreadable and distributed.is_main():
            lines = [f"{path}\t{reason}" for path, reason in sorted(self.unreadable.items())]
            atomic_write_text(self.folder / "unreadable_images.txt", "\n".join(lines) + "\n")

    def _resume(self, step: int, state: dict[str, Any]) -> bool:
        """Restore the checkpoint; False when its best value was of another measure than the one asked for now."""
        load_state(self.model, self.optimizer, state, self.folder)
        self.step, self.samples, self.skipped = step, int(state["samples"]), int(state["skipped"])
        self.unreadable = dict(state["unreadable"])
        self.monitor.load_state_dict(state["monitor"])
        same_measure = self.best.load_state_dict(state["best"])
        self.last_ranks = state.get("last_ranks") or None
        set_rng_state(state["rng"])
        log.info(f"continuing {str(self.folder)!r} after step {step}")
        if state["step_images"] != self.step_images:
            log.warning(
                f"{self.step_images} images per step instead of {state['step_images']}: the samples continue without a "
                "gap, the learning rate follows its rule for the new number"
            )
        return same_measure

    def _introduce(self, dtype_reason: str) -> None:
        """Say what is about to run, write config.yaml and, at a fresh start, the features before it."""
        config, optim, world = self.config, self.config.optim, self.world
        parameters = sum(p.numel() for p in _backbone(self.model.student).parameters()) / 1e6
        place = f"{self.device} ({world.device_reason}), {world.world_size} process(es)"
        log.info(f"device: {place}, {self.dtype} ({dtype_reason}), {self.machine_rate / 1e12:.3g} TFLOP/s in products")
        shape = f"{config.model.arch}/{config.model.patch_size}, {config.model.registers} registers"
        log.info(f"backbone: {shape}, {parameters:.1f} M parameters, {self.image_flops / 1e12:.3g} TFLOP an image")
        split = f"{optim.batch_size} × {world.world_size} process(es) × {optim.accumulate}"
        log.info(f"data: {len(self.paths)} images, {self.step_images} a step ({split})")
        rule = f"base {optim.base_lr:g}, rule {optim.lr_rule}"
        log.info(f"learning rate: {rule}, effective {self.peak_lr:.3g} at the peak")
        announce(self.probes, self.best)
        if not distributed.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.folder / "config.yaml", to_yaml(config))
        images = report_images(self.paths, config) if self.step == 0 else []
        if images:
            save_before(self.folder, _backbone(self.model.teacher), images, self.dtype)


def _backbone(networks: nn.ModuleDict) -> VisionTransformer:
    backbone = networks["backbone"]
    assert isinstance(backbone, VisionTransformer)
    return backbone


def _mean(terms: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean of each term over micro-batches and ranks, in one reduction."""
    stacked = torch.stack([torch.stack([term[name].float() for name in terms[0]]) for term in terms])  # [A, terms]
    return dict(zip(terms[0], distributed.all_reduce_mean(stacked.mean(dim=0)).tolist(), strict=True))
