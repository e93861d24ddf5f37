"""The run folder: config.yaml, metrics.jsonl, model/, report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell.core import log
from dinocell.core.config import to_yaml
from dinocell.core.files import atomic_write_text, load_file
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.run_data import RunData
from dinocell.finetune.output.model_card import Provenance, write_model_folder
from dinocell.finetune.output.report import prediction_panel, write_report
from dinocell.finetune.validate.tuning import Tuning
from dinocell.finetune.validate.validator import SCORES, Validation
from dinocell.models import SegmentationModel
from dinocell.objectives import ObjectiveConfig
from dinocell.training import distributed
from dinocell.training.progress import RunLogger


class RunOutput:
    """Writes the files of one run; only rank 0 touches the disk."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: SegmentationModel,
        data: RunData,
        origin: Provenance,
        *,
        resume_step: int,
    ) -> None:
        self.directory = Path(config.output_dir)
        self._config, self._model, self._data = config, model, data
        self._main = distributed.is_main()
        self._origin = origin
        if self._main:
            self.directory.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.directory / "config.yaml", to_yaml(config))
        self.logger = RunLogger(self.directory, data.total_steps, enabled=self._main, resume_step=resume_step)

    def validated(self, step: int, validation: Validation, channels: Sequence[str], better: bool) -> None:
        """Log one validation: a line, a row per dataset, the panels."""
        scores = validation.metrics()
        spreads = {f"spread_{n}": s for n, s in zip(channels, validation.spreads(), strict=True)}
        self.logger.log(step, {**scores, **spreads}, split="val")
        monitor = self._config.validate.monitor
        shown = (*SCORES, "loss") if monitor in (*SCORES, "loss") else (*SCORES, monitor, "loss")
        for name, values in validation.by_dataset().items():
            self.logger.log(step, values, split=f"val/{name}")
            self.logger.info(f"  {name}: " + ", ".join(f"{k} {values[k]:.3f}" for k in shown))
        line = ", ".join(f"{name} {scores[name]:.3f}" for name in shown)
        self.logger.info(f"validation at step {step}: {line}{' · best so far' if better else ''}")
        if self._main:
            for result in validation.results:
                if result.prediction is not None:
                    self.logger.image(step, f"{result.dataset}/{result.stem}", prediction_panel(self._data.val, result))

    def write_model(
        self, step: int, validation: Validation | None, decoding: ObjectiveConfig, tuning: Tuning | None = None
    ) -> None:
        """Write model/ with the model's present weights and the decoding that its scores were measured with."""
        if self._main:
            write_model_folder(
                self.directory / "model",
                self._model,
                self._config,
                self._origin,
                step=step,
                validation=validation,
                decoding=decoding,
                tuning=tuning,
            )

    def load_best(self, path: Path) -> int:
        """Put the best model's weights into the network; returns their step."""
        state = load_file(path)
        self._model.load_state_dict(state["model"])
        return int(state["step"])

    def finish(self, validation: Validation | None, tuning: Tuning | None) -> None:
        """Write the report and say where things are."""
        if self._main:
            path = write_report(self.directory, self._config, self._data.val, validation, self._data.notes, tuning)
            log.info(f"model: {self.directory / 'model'} · report: {path}")
        self.logger.close()
        distributed.barrier()
