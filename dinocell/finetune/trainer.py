"""The fine-tuning run: `run(config)` trains, validates, keeps the best model, and can be killed and continued."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinocell.core import log
from dinocell.core.config import to_dict
from dinocell.core.device import autocast, choose_dtype
from dinocell.core.errors import ConfigError, DataError
from dinocell.finetune.batch_fit import choose_accumulation, is_out_of_memory, out_of_memory_message
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.hard_examples import draw_by_scores, training_scores
from dinocell.finetune.data.loader import Batch, BatchLoader, worker_count
from dinocell.finetune.data.run_data import RunData, open_run_data
from dinocell.finetune.data.token_cache import TokenCache
from dinocell.finetune.from_model import adopt, open_start
from dinocell.finetune.network import AveragedWeights, Thaw, build_model, freeze_forever, optimizer_groups
from dinocell.finetune.output.model_card import provenance
from dinocell.finetune.output.run_folder import RunOutput
from dinocell.finetune.validate.tuning import tune
from dinocell.finetune.validate.validator import Validation, Validator, decoding_while_training, validation_runner
from dinocell.objectives import build_objective, total_loss
from dinocell.training import distributed
from dinocell.training.checkpoint import CheckpointManager
from dinocell.training.optim import adamw, clip_gradients, set_schedule
from dinocell.training.outcome import RunOutcome
from dinocell.training.progress import RunLogger, StepTimer
from dinocell.training.resume import check_resumable, refuse_unused
from dinocell.training.schedules import cosine
from dinocell.training.signals import StopSignal

# Settings that give the best value so far its meaning.
_MEASURE = ("validate.monitor", "validate.average", "validate.max_images", "validate.views")


def run(config: FinetuneConfig) -> RunOutcome:
    """Fine-tune as the recipe says; writes model/, report.html, metrics.jsonl and checkpoints/ to `output_dir`.

    An interrupted run in `output_dir` is continued from its last checkpoint. On SIGTERM or SIGUSR2 a checkpoint is
    written and the function returns early; the outcome names the signal.

    Raises:
        ConfigError: a setting is impossible, or `output_dir` contains a run with other settings.
        DataError: no usable training data, or the loss is no longer a number.
        CheckpointError: weights or checkpoints cannot be read.
    """
    world = distributed.setup(config.device)
    share = world.world_size * config.train.accumulate
    if config.train.batch_size % share:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} crops cannot be shared by {world.world_size} processes × "
            f"train.accumulate={config.train.accumulate}; use a multiple of {share}"
        )
    try:
        return Trainer(config).run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only after the except block is the failed run's memory free, and what fits can be measured.
    raise DataError(out_of_memory_message(config))


class Trainer:
    """One run: model, optimizer, data and how far it has come."""

    def __init__(self, config: FinetuneConfig) -> None:
        start = open_start(config)
        self.config = config = adopt(config, start.card) if start is not None else config
        self.world = distributed.world()
        self.device = self.world.device
        self.dtype, dtype_reason = choose_dtype(config.precision, self.device)
        log.info(f"device {self.device} ({self.world.device_reason}), {self.dtype} ({dtype_reason})")
        self.checkpoints = CheckpointManager(Path(config.output_dir) / "checkpoints")
        resumed = self.checkpoints.load_latest()
        if resumed is not None:
            where = f"output_dir: {config.output_dir!r} contains a run"
            changes = check_resumable(config, resumed[1]["config"], where=where)
        self.objective = build_objective(config.objective)
        self.data: RunData = open_run_data(config, self.objective, start.card if start is not None else None)
        self.total_steps = self.data.total_steps
        self.module = build_model(config, len(self.objective.channels), start).to(self.device)
        freeze_forever(self.module.backbone, config.backbone)
        self.trained: nn.Module = self.module  # a step's forward pass; a token cache stands in for the network here
        if config.train.auto_batch:
            accumulate = choose_accumulation(self.module, self.objective, config, self.dtype)
            self.config = config = replace(config, train=replace(config.train, accumulate=accumulate))
        self.optimizer = adamw(optimizer_groups(self.module, config))
        self.thaw = Thaw(self.module.backbone, config.backbone)
        self.average = AveragedWeights(self.module, config.train.ema) if config.train.ema else None
        self.decoding = decoding_while_training(config)
        self.runner = validation_runner(self.module, config, self.device, self.dtype)
        self.validator = Validator(self.data.val, self.decoding, config) if len(self.data.val) else None
        if self.decoding != config.objective:
            log.info(f"validations leave out the {self.objective.cell_check}; it is chosen on the val split at the end")
        self.step = 0
        self.seconds = 0.0
        self.began = time.perf_counter()
        self.validations = 0
        self.validation_pending = False  # asked to stop in the middle of one
        self.best = -math.inf
        self.stale = 0
        self.latest: Validation | None = None
        self.scores: tuple[float, ...] = ()  # of the training images by the starting model, with data.hard
        if resumed is not None:
            self._restore(*resumed)
            if self._finished():  # a finished run may be validated or exported in another way, but not trained
                refuse_unused([change for change in changes if change.key.startswith("train.")], where)
            elif any(change.key in _MEASURE for change in changes):
                log.warning("validations measure something else now: the best value so far is forgotten")
                self.best, self.stale = -math.inf, 0
        elif config.data.hard:
            self.scores = training_scores(self.runner, self.data.train.store, config)
        if self.scores:
            draw_by_scores(self.data, self.scores, config)
        origin = provenance(self.data.train_items, config, self.data.sizes, start)
        self.output = RunOutput(config, self.module, self.data, origin, resume_step=self.step)
        self.logger: RunLogger = self.output.logger

    def run(self) -> RunOutcome:
        """Train to the end, or until asked to stop."""
        if self._finished() and not self.validation_pending:
            log.info(f"{self.config.output_dir} is already trained to step {self.step}; train longer to continue")
        elif not self._finished() and self.config.backbone.cache_tokens:
            self.trained = TokenCache(self.module, self.data.train.store, self.config, self.device, self.dtype)
        with StopSignal() as stop:
            self.began = time.perf_counter() - self.seconds
            complete = not self.validation_pending or self._validate(stop)
            complete = complete and (self._finished() or self._loop(stop))
        if not complete:
            log.info(f"stopped by {stop.name} at step {self.step}; the same command continues the run")
            self.logger.close()
            return RunOutcome(folder=self.output.directory, step=self.step, stopped_by=stop.name)
        self._finish()
        return RunOutcome(folder=self.output.directory, step=self.step)

    def _finished(self) -> bool:
        return self._progress() >= 1.0 or self._out_of_patience()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _loop(self, stop: StopSignal) -> bool:
        """Train until the end; False when asked to stop before it."""
        train = self.config.train
        means, timer = Means(), StepTimer()
        loader = BatchLoader(
            self.data.train,
            batch_size=train.batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            accumulate=train.accumulate,
            steps=(self.step, self.total_steps),
            workers=worker_count(self.config.data.workers, self.world.world_size),
            timer=timer,
        )
        self.thaw.update(self._progress())
        model = self._parallel()
        self.began = time.perf_counter() - self.seconds
        for batches in loader:
            progress = self._progress()
            if self.thaw.update(progress):
                model = self._parallel()
            self._schedule(progress)
            means.add(self._train_step(model, batches))
            timer.images += train.batch_size
            self.step += 1
            self._tick()
            done = self._progress() >= 1.0
            if self.step % train.log_every == 0 or done:
                self._log(means, timer)
            if self._validation_due(done):
                with timer.paused():
                    complete = self._validate(stop)
                if not complete:
                    return False
                if self._out_of_patience() and not done:
                    log.info(f"no better {self.config.validate.monitor} for {self.stale} validations: stopping early")
                    return True
            asked = stop.requested()
            if done or asked or self.step % train.checkpoint_every == 0:
                self.checkpoints.save(self.step, self._state())
            if done or asked:
                return done
        return True

    def _train_step(self, model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step over this process's micro-batches; returns this step's loss and its terms.

        The loss is Σ(L·M)/ΣM over the whole global batch (§3.3.5, eq. 1): each micro-batch counts with its part of ΣM,
        so the result does not depend on how the batch is split.
        """
        # Dropout must not depend on what ran before, or a continued run would differ.
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1_009 + self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        weights = [batch.weight.sum().to(self.device) for batch in batches]
        total = distributed.all_reduce_sum(torch.stack(weights).sum()).clamp_min(1e-12)
        sums: dict[str, Tensor] = {}
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            last = number == len(batches) - 1
            here = batch.to(self.device)
            share = weight * (self.world.world_size / total)  # DDP averages over processes
            with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
                with autocast(self.device, self.dtype):
                    prediction = model(here.image)
                terms = self.objective.loss_terms(prediction, here.target, here.weight)
                loss = total_loss(terms)
                (loss * share).backward()
            for name, value in {"loss": loss, **(terms if len(terms) > 1 else {})}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() * share
        if self.config.train.clip_gradient:
            clip_gradients(self.module, self.config.train.clip_gradient)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.module)
        return sums

    def _parallel(self) -> nn.Module:
        if self.world.world_size == 1:
            return self.trained
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.trained, device_ids=devices, broadcast_buffers=False)

    def _tick(self) -> None:
        """Note the seconds trained so far; under a time budget rank 0's clock counts for all."""
        self.seconds = time.perf_counter() - self.began
        if self.config.train.minutes:
            self.seconds = distributed.broadcast_object(self.seconds)

    def _progress(self) -> float:
        """Share of the training done, by steps or by the time budget, whichever is further."""
        by_steps = self.step / self.total_steps
        minutes = self.config.train.minutes
        return min(1.0, max(by_steps, self.seconds / (60 * minutes) if minutes else 0.0))

    def _schedule(self, progress: float) -> None:
        train = self.config.train
        lr = cosine(
            round(progress * self.total_steps),
            base=train.lr,
            final=train.final_lr,
            total=self.total_steps,
            warmup=round(train.warmup * self.total_steps),
        )
        set_schedule(self.optimizer, lr, train.weight_decay)

    def _log(self, collected: Means, timer: StepTimer) -> None:
        means, lap = collected.read(), timer.lap()
        if not math.isfinite(means["loss"]):
            raise DataError(
                f"the loss is {means['loss']} at step {self.step}; lower train.lr (now {self.config.train.lr:g}), set "
                "train.clip_gradient=1 or precision=float32, and run again from the last checkpoint"
            )
        if self.config.train.minutes:  # the time budget, not the step count, decides when the run ends
            self.logger.total_steps = max(self.step, round(self.step / max(self._progress(), 1e-6)))
        means["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        timing = {"images_per_second": lap.images_per_second, "data_wait": lap.data_wait}
        self.logger.log(self.step, {**means, **timing, "seconds": self.seconds})
        self.logger.progress(self.step, means, **timing)

    # ---- validation and state ----------------------------------------------------------------------------------------

    def _validation_due(self, done: bool) -> bool:
        times = self.config.validate.times
        return self.validator is not None and (done or math.floor(self._progress() * times) > self.validations)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.validate.patience <= self.stale

    def _validate(self, stop: StopSignal) -> bool:
        """Validate, and keep the model if it is the best; False when asked to stop before the last image.

        Whole images can take longer than the warning before the end of a job: the validation is then left, and made
        first when the run continues.
        """
        assert self.validator is not None
        with self.average.applied(self.module) if self.average is not None else nullcontext():
            latest = self.validator.run_until(self.runner, lambda: stop.received)
            self.validation_pending = latest is None and stop.requested()
            if latest is not None:
                self._judge(latest)
        self.checkpoints.save(self.step, self._state())
        return latest is not None

    def _judge(self, latest: Validation) -> None:
        """Log a validation and keep the model, whose averaged weights are in place, if it is the best."""
        self.latest = latest
        self._tick()
        # After, not before: a validation that eats into a time budget must not make the next one due at once.
        self.validations = math.floor(self._progress() * self.config.validate.times)
        scores = latest.metrics()
        if not scores:
            return
        monitor = self.config.validate.monitor
        value = -scores[monitor] if monitor == "loss" else scores[monitor]
        better = value > self.best
        self.output.validated(self.step, latest, self.objective.channels, better)
        if better:
            self.best, self.stale = value, 0
            self.checkpoints.save_best(self.step, {"model": self.module.state_dict()})
            self.output.write_model(self.step, latest, self.decoding)
        else:
            self.stale += 1

    def _finish(self) -> None:
        """Choose the best model's decoding, write the model folder and the report."""
        tuning = None
        distributed.barrier()  # rank 0 may still be writing the best model that all are about to read
        best = self.checkpoints.directory / "best.pt"
        if self.validator is None or not best.is_file():
            with self.average.applied(self.module) if self.average is not None else nullcontext():
                self.output.write_model(self.step, None, self.config.objective)
        else:
            step = self.output.load_best(best)
            if self.config.validate.tune_decoding:
                tuning = tune(self.runner, self.validator, self.config, self.data.sizes.small_area)
            if tuning is not None:
                log.info(tuning.sentence())
                final = Validator(self.data.val, tuning.chosen, self.config)
                self.latest = final.run(self.runner)
                self.output.write_model(step, self.latest, tuning.chosen, tuning)
            elif self.latest is None:  # a finished run, called again: perhaps with other views or decoding
                self.latest = self.validator.run(self.runner)
                self.output.write_model(step, self.latest, self.decoding)
        self.output.finish(self.latest, tuning)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "config": to_dict(self.config),
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "validations": self.validations,
            "best": self.best,
            "stale": self.stale,
            "validation_pending": self.validation_pending,
            "training_scores": self.scores,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.seconds = step, float(state["seconds"])
        self.validations, self.best, self.stale = int(state["validations"]), float(state["best"]), int(state["stale"])
        self.validation_pending = bool(state.get("validation_pending", False))
        self.scores = tuple(state.get("training_scores", ()))
        log.info(f"continuing {self.config.output_dir} from step {step} of {self.total_steps}")


class Means:
    """Means of a step's values over the steps since the last log line."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's values; they stay on their device."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Means over steps and processes; starts over."""
        means = {n: float(distributed.all_reduce_mean(v)) / self._steps for n, v in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means
