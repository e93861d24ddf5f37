"""The best teacher of a run by one monitor, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dinocell.core import log
from dinocell.core.errors import ConfigError
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.monitor.probes import Probes


class BestTeacher:
    """Keeps the value of the chosen monitor, and says when the run should stop."""

    def __init__(self, config: PretrainConfig, available: Sequence[str]) -> None:
        wanted = config.monitor.best_by
        self.patience = config.monitor.patience
        if wanted == "auto":
            self.name = "probe_patch" if "probe_patch" in available else None
        elif wanted == "none":
            self.name = None
        elif wanted in available or wanted.startswith("rankme"):
            self.name = wanted
        else:
            raise ConfigError(
                f"monitor.best_by: {wanted} needs "
                + ("data in at least two sub-folders" if wanted == "knn_source" else "monitor.labelled")
                + " and monitor.every above 0"
            )
        if self.patience and self.name is None:
            raise ConfigError("monitor.patience: stops by a monitor; set monitor.labelled or monitor.best_by")
        self.best, self.best_step, self.stale = -math.inf, 0, 0
        self.measure: dict[str, Any] = {"name": self.name}  # with the settings that give the value its meaning
        if self.name in ("knn_patch", "probe_patch"):
            self.measure |= {"labelled": list(config.monitor.labelled), "images": config.monitor.images}
        elif self.name == "knn_source":
            self.measure |= {"root": list(config.data.root), "images": config.monitor.images}

    def observe(self, step: int, values: dict[str, float]) -> bool:
        """Take note of the values at a step; True if they are the best so far."""
        if self.name is None:
            return False
        if values[self.name] > self.best:
            self.best, self.best_step, self.stale = values[self.name], step, 0
            return True
        self.stale += 1
        return False

    @property
    def should_stop(self) -> bool:
        """True if the monitor has not improved for `monitor.patience` probes."""
        return bool(self.patience) and self.stale >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers for the checkpoint, and what they measure."""
        return {"best": self.best, "best_step": self.best_step, "stale": self.stale, "measure": self.measure}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore `state_dict`; False, and nothing restored, when its numbers are of another measure."""
        if state["measure"] != self.measure:
            return False
        self.best, self.best_step, self.stale = state["best"], int(state["best_step"]), int(state["stale"])
        return True

    def describe(self) -> str:
        """The best value so far, in words."""
        return f"best {self.name} {self.best:.3f} at step {self.best_step}" if self.name else ""


def announce(probes: Probes, best: BestTeacher) -> None:
    """Say what will be watched."""
    if not probes.names:
        return
    watched = ", ".join(probes.names)
    kept = f"; the teacher of the best {best.name} is kept in checkpoints/best.pt" if best.name else ""
    log.info(f"probes: {watched}{kept}")
