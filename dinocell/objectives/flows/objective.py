"""Flows: every pixel of a cell points along the heat that diffuses from the cell's centre (the default objective).

Targets and decoding are those of Cellpose (Stringer et al., Nature Methods 18, 100, 2021) that the paper uses (§3.3);
docs/objectives.md says where the algorithms differ and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dinocell.core.arrays import Labels
from dinocell.labels.cells import Cells, measure_cells
from dinocell.labels.regions import fill_holes
from dinocell.objectives.base import Array, Decoded, Frame, Objective, ObjectiveConfig, weighted_mean
from dinocell.objectives.flows import walk
from dinocell.objectives.flows.seeds import label_sinks
from dinocell.objectives.flows.targets import Variant, flow_errors, masks_to_flows


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """Account of what decoding kept and dropped, in the order of its checks.

    Attributes:
        cells: cells in the result.
        too_large: (y0, x0, y1, x1, pixels), in the whole image, of each mask dropped for its size.
        inconsistent: the same of each mask dropped for its flow error.
        too_small: masks under `min_size`.
        unassigned: pixels above the threshold whose sink gathered too few pixels for a seed.
    """

    cells: int
    too_large: tuple[tuple[int, ...], ...] = ()
    inconsistent: tuple[tuple[int, ...], ...] = ()
    too_small: int = 0
    unassigned: int = 0

    def __str__(self) -> str:
        return (
            f"{self.cells} cells kept; dropped: {len(self.too_large)} too large, {len(self.inconsistent)} whose flow "
            f"disagrees with their shape, {self.too_small} too small, {self.unassigned} pixels without a seed"
        )


def decode_flows(
    flows: npt.ArrayLike,
    probability: npt.ArrayLike,
    config: ObjectiveConfig | None = None,
    *,
    threads: int = 1,
    frame: Frame | None = None,
) -> tuple[Labels, DecodeReport]:
    """Decode as `flows_to_masks` does, with the settings of a recipe, and report what was dropped and why.

    Args:
        flows: (2, H, W) dy then dx at unit scale, any float dtype.
        probability: (H, W) in [0, 1].
        config: thresholds, limits and target variant; default: those of the recipes.
        threads: threads that share rows and cells.
        frame: position of the maps in a larger image, so that a part decodes as the whole does.

    Raises:
        ValueError: shapes that do not belong together.
    """
    config = config or ObjectiveConfig()
    flows = np.ascontiguousarray(flows, np.float32)
    probability = np.ascontiguousarray(probability, np.float32)
    if flows.shape != (2, *probability.shape) or probability.ndim != 2:
        raise ValueError(f"flows must be (2, H, W) and probability (H, W), got {flows.shape} and {probability.shape}")
    labels = walk.end_points(flows, probability, config.threshold, config.max_steps, threads, frame)
    count, inside = label_sinks(labels)
    cells = measure_cells(labels, count)
    unassigned = inside - int(cells.areas.sum())
    frame = frame or Frame(y=0, x=0, height=labels.shape[0], width=labels.shape[1])
    large = cells.areas > config.max_size_fraction * frame.height * frame.width
    too_large = _describe(cells, large, frame)
    cells = cells.without(large)
    inconsistent: tuple[tuple[int, ...], ...] = ()
    if config.flow_error > 0:
        bad = flow_errors(cells, flows, config.flow_variant, threads) > config.flow_error
        inconsistent = _describe(cells, bad, frame)
        cells = cells.without(bad)
    areas = cells.areas + fill_holes(labels)[cells.numbers]
    small = areas < config.min_size
    cells = cells.without(small)
    report = DecodeReport(
        cells=len(cells.numbers),
        too_large=too_large,
        inconsistent=inconsistent,
        too_small=int(small.sum()),
        unassigned=unassigned,
    )
    return labels, report


def _describe(cells: Cells, chosen: npt.NDArray[np.bool_], frame: Frame) -> tuple[tuple[int, ...], ...]:
    boxes = cells.boxes[chosen] + [frame.y, frame.x, frame.y, frame.x]
    rows = np.concatenate([boxes, cells.areas[chosen, None]], axis=1)
    return tuple(tuple(int(value) for value in row) for row in rows)


def flows_to_masks(
    flows: npt.ArrayLike,
    probability: npt.ArrayLike,
    threshold: float = 0.5,
    *,
    flow_error: float = 0.4,
    max_size_fraction: float = 0.4,
    min_size: int = 15,
    max_steps: int = walk.MAX_STEPS,
    variant: Variant = "cellpose",
    threads: int = 1,
) -> Labels:
    """Decode flows into labels.

    Masks dropped for their size are named in a warning; everything else dropped is counted in an INFO record of the
    logger `dinocell.objectives.base`, and returned by `decode_flows`.

    Args:
        flows: (2, H, W) dy then dx at unit scale (divide by `flow_scale` first), any float dtype.
        probability: (H, W) in [0, 1] (a probability, not a logit).
        threshold: pixels with probability above it belong to cells.
        flow_error: drop masks whose own flow differs from `flows` by more than this mean square; 0 = no check.
        max_size_fraction: drop masks larger than this part of the image.
        min_size: drop masks under this many pixels, after holes are filled.
        max_steps: Euler steps; a pixel that is then still going may take up to H + W more (see walk.py).
        variant: target variant that the flow check recomputes (see `masks_to_flows`).
        threads: threads that share rows and cells.

    Returns:
        (H, W) int32 labels 1…n without gaps, 0 = background.

    Raises:
        ConfigError: a threshold or limit out of its bounds.
        ValueError: shapes that do not belong together.
    """
    config = ObjectiveConfig(
        threshold=threshold,
        flow_error=flow_error,
        max_size_fraction=max_size_fraction,
        min_size=min_size,
        max_steps=max_steps,
        flow_variant=variant,
    )
    decoded = _with_notes(*decode_flows(flows, probability, config, threads=threads), config)
    decoded.announce()
    return decoded.labels


def _with_notes(labels: Labels, report: DecodeReport, config: ObjectiveConfig) -> Decoded:
    """Add one sentence that names the masks dropped for their size, if there are any."""
    if not report.too_large:
        return Decoded(labels=labels, details=str(report))
    count = len(report.too_large)
    boxes = ", ".join(f"y {y0}:{y1} x {x0}:{x1} ({area} px)" for y0, x0, y1, x1, area in report.too_large)
    note = (
        f"dropped {count} cell{'s' if count > 1 else ''} larger than {config.max_size_fraction:.3g} of the image: "
        f"{boxes}; raise max_size_fraction to keep {'them' if count > 1 else 'it'}"
    )
    return Decoded(labels=labels, notes=(note,), details=str(report))


class FlowsObjective(Objective):
    """Flow and probability maps (paper §3.3): mean squared error on each map, summed."""

    name = "flows"
    channels = ("flow_y", "flow_x", "probability")
    vector_maps = ((0, 1),)
    cell_check = "flow check"

    def describe(self) -> str:
        """Say in words what the maps are."""
        return "the flow, which points to the cell's centre, and whether a pixel belongs to a cell"

    def targets(self, labels: npt.ArrayLike) -> Array:
        """Make (3, H, W) of labels (H, W): dy, dx at unit length whatever `flow_scale` is, and label > 0."""
        flows = masks_to_flows(labels, self.config.flow_variant)
        return np.concatenate([flows, (np.asarray(labels) > 0)[None]], axis=0, dtype=np.float32)

    def loss_terms(self, prediction: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Compute Σ(L·M)/ΣM of both flow maps together and of the probability.

        L squares differences from `flow_scale` × target, or is BCE on the logit.
        """
        prediction, target = prediction.float(), target.float()
        weight = weight[:, 0].float()  # [B, H, W]
        flow = (prediction[:, :2] - self.config.flow_scale * target[:, :2]).square().sum(dim=1)  # [B, H, W]
        if self.config.probability_loss == "mse":
            cell = (prediction[:, 2] - target[:, 2]).square()
        else:
            cell = F.binary_cross_entropy_with_logits(prediction[:, 2], target[:, 2], reduction="none")
        return {"flow": weighted_mean(flow, weight), "cell": weighted_mean(cell, weight)}

    def vectors(self, maps: Array) -> Array:
        """Return the flows (2, H, W) at unit scale of raw maps (3, H, W)."""
        flows = np.ascontiguousarray(maps[:2], np.float32)
        return flows if self.config.flow_scale == 1 else flows / np.float32(self.config.flow_scale)

    def cell_probability(self, maps: Array) -> Array:
        """Compute the probability (H, W) of raw maps (3, H, W)."""
        raw = np.ascontiguousarray(maps[2], np.float32)
        if self.config.probability_loss == "bce_with_logits":
            return np.asarray(torch.sigmoid(torch.from_numpy(raw)).numpy())
        return np.clip(raw, 0.0, 1.0)

    def decode_with_notes(self, prediction: Array, frame: Frame | None = None) -> Decoded:
        """Turn raw maps (3, H, W) into labels; a note names the masks dropped for their size."""
        flows, probability = self.vectors(prediction), self.cell_probability(prediction)
        labels, report = decode_flows(flows, probability, self.config, threads=torch.get_num_threads(), frame=frame)
        return _with_notes(labels, report, self.config)

    def tuning_grid(self) -> Mapping[str, tuple[float, ...]]:
        """List values of the threshold and of the flow check."""
        return {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "flow_error": (0.0, 0.4, 0.8, 1.2)}

    def without_check(self) -> ObjectiveConfig:
        """Turn the flow check off."""
        return replace(self.config, flow_error=0.0)

    def cell_errors(self, maps: Array, cells: Cells) -> npt.NDArray[np.float64]:
        """Measure the mean squared difference between each cell's own flow and the predicted one."""
        return flow_errors(cells, self.vectors(maps), self.config.flow_variant)
