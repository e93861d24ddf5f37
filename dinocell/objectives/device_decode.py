"""Flow decoding with torch operations, on whatever device the maps are; the steps are those of walk.py and dynamics.py.

Filling holes is the one step done on the CPU: its region search is sequential, and cheap.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from dinocell.objectives import dynamics, walk
from dinocell.objectives.device_targets import masks_to_flows_device
from dinocell.objectives.flows import DecodeReport, Variant
from dinocell.objectives.regions import fill_holes

SEEDS_AT_ONCE = 1 << 14


def decode_flows_device(
    flows: Tensor,
    probability: Tensor,
    threshold: float = 0.5,
    *,
    flow_error: float = 0.4,
    max_size_fraction: float = 0.4,
    min_size: int = 15,
    max_steps: int = walk.MAX_STEPS,
    variant: Variant = "cellpose",
) -> tuple[Tensor, DecodeReport]:
    """As `flows.decode_flows`, for tensors flows (2, H, W) and probability (H, W) on one device.

    Returns:
        labels (H, W) int32 on that device, and what was dropped.
    """
    if flows.shape != (2, *probability.shape):
        raise ValueError(f"flows must be (2, H, W) and probability (H, W), got {flows.shape} and {probability.shape}")
    flows, inside = flows.float(), probability.float() > threshold
    labels = _label_sinks(_end_points(flows, inside, max_steps), inside)
    areas = _areas(labels)
    unassigned = int(inside.sum() - areas.sum())
    large = areas > max_size_fraction * labels.numel()
    too_large = _describe(labels, areas, large)
    labels = _relabel(labels, (areas > 0) & ~large)
    inconsistent: tuple[tuple[int, ...], ...] = ()
    if flow_error > 0 and bool(labels.any()):
        areas = _areas(labels)
        own = masks_to_flows_device(labels, variant)
        squares = (own - flows).double().square().sum(dim=0)  # [H, W]
        total = torch.zeros(len(areas) + 1, dtype=torch.float64, device=labels.device)
        total = total.scatter_add(0, labels.flatten().long(), squares.flatten())[1:]
        bad = total / areas > flow_error
        inconsistent = _describe(labels, areas, bad)
        labels = _relabel(labels, ~bad)
    filled = labels.cpu().numpy()
    fill_holes(filled)
    labels = torch.from_numpy(filled).to(flows.device)
    areas = _areas(labels)
    small = areas < min_size
    labels = _relabel(labels, ~small)
    report = DecodeReport(
        cells=int((~small).sum()),
        too_large=too_large,
        inconsistent=inconsistent,
        too_small=int(small.sum()),
        unassigned=unassigned,
    )
    return labels, report


def _areas(labels: Tensor) -> Tensor:
    """[n] pixels of labels 1…n, n the largest label."""
    return torch.bincount(labels.flatten(), minlength=1)[1:]


def _describe(labels: Tensor, areas: Tensor, chosen: Tensor) -> tuple[tuple[int, ...], ...]:
    """(y0, y1, x0, x1, pixels) of each chosen label."""
    rows = []
    for index in torch.nonzero(chosen)[:, 0].tolist():
        y, x = torch.nonzero(labels == index + 1, as_tuple=True)
        rows.append((int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1, int(areas[index])))
    return tuple(rows)


def _relabel(labels: Tensor, keep: Tensor) -> Tensor:
    """Labels 1…n → 1…m without gaps, dropping label k where keep[k − 1] is False."""
    table = torch.zeros(len(keep) + 1, dtype=torch.int32, device=labels.device)
    table[1:] = torch.where(keep, keep.cumsum(0), 0).int()
    return table[labels.long()]


def _end_points(flows: Tensor, inside: Tensor, max_steps: int) -> Tensor:
    """Flat index [P] of the pixel where each pixel of `inside` ends (see walk.py)."""
    height, width = inside.shape
    usable = inside & (flows.abs() < float(walk.FASTEST)).all(dim=0)
    pairs = F.pad(torch.where(usable, flows, 0).permute(1, 2, 0), (0, 0, 1, 1, 1, 1))  # [H + 2, W + 2, 2]
    start = torch.nonzero(inside)  # [P, 2]
    way = torch.empty(start.shape, device=flows.device)
    active = torch.arange(len(start), device=flows.device)
    walker = _Walker(pairs, start, (height, width))
    now, before = torch.zeros_like(way), torch.full_like(way, -9.0)
    mark = now
    for step in range(max_steps + height + width):
        if len(active) == 0:
            break
        if step >= max_steps and (step - max_steps) % walk.PROBE == 0:
            going = (now - mark[active]).abs().amax(dim=1) >= walk.GOING
            way[active[~going]] = now[~going]
            active, now, before = active[going], now[going], before[going]
            walker = walker.keep(going)
        if (max_steps - step) % walk.PROBE == 0:
            mark = way.clone()
            mark[active] = now
        ahead = walker.advance(now)
        apart = (ahead - before).abs().amax(dim=1)
        back = ((ahead - now) * (now - before)).sum(dim=1) < 0
        arrived = (apart < walk.SWING) & (back | (apart < walk.STILL))
        # A swing of two steps: where the last step leaves the pixel depends on how many are left.
        there = now if step < max_steps and (max_steps - step) % 2 == 0 else ahead
        way[active[arrived]] = there[arrived]
        active, before, now = active[~arrived], now[~arrived], ahead[~arrived]
        walker = walker.keep(~arrived)
    way[active] = now
    ends = start + way.floor().long()
    return ends[:, 0] * width + ends[:, 1]


class _Walker:
    """The pixels still under way, and one Euler step of all of them."""

    def __init__(self, pairs: Tensor, start: Tensor, size: tuple[int, int]) -> None:
        scales, offsets = zip(*(walk.sampling(length, 0, length) for length in size), strict=True)
        self.pairs = pairs  # [H + 2, W + 2, 2]
        self.scale = torch.tensor([float(scale) for scale in scales], device=pairs.device)
        columns = [torch.from_numpy(offset).to(pairs.device)[start[:, i]] for i, offset in enumerate(offsets)]
        self.offset = torch.stack(columns, dim=1)  # [P, 2]
        self.start = start
        self.least = -start.float()
        self.most = torch.tensor(size, device=pairs.device) - 1 - start.float()

    def keep(self, chosen: Tensor) -> _Walker:
        """The walker of the chosen pixels only."""
        if bool(chosen.all()):
            return self
        kept = copy.copy(self)
        kept.offset, kept.start = self.offset[chosen], self.start[chosen]
        kept.least, kept.most = self.least[chosen], self.most[chosen]
        return kept

    def advance(self, way: Tensor) -> Tensor:
        """Ways [P, 2] after one step, bilinear sampling, clamped to the image."""
        place = way * self.scale + self.offset
        corner = place.floor()
        fy, fx = (place - corner).unsqueeze(2).unbind(1)  # [P, 1] each
        row, column = (self.start + corner.long() + 1).unbind(1)
        a, b = self.pairs[row, column], self.pairs[row, column + 1]
        c, d = self.pairs[row + 1, column], self.pairs[row + 1, column + 1]
        upper, lower = a + fx * (b - a), c + fx * (d - c)
        return torch.minimum(torch.maximum(way + (upper + fy * (lower - upper)), self.least), self.most)


def _label_sinks(ends: Tensor, inside: Tensor) -> Tensor:
    """Labels (H, W) int32 from the end points [P] of the pixels of `inside`; larger seeds win."""
    height, width = inside.shape
    counts = torch.bincount(ends, minlength=height * width).view(height, width)
    peaks = F.max_pool2d(counts[None].double(), 2 * dynamics.SEED_RADIUS + 1, 1, dynamics.SEED_RADIUS)[0]
    seeds = torch.nonzero((counts == peaks) & (counts > dynamics.SEED_COUNT))  # [n, 2]
    seeds = seeds[torch.argsort(counts[seeds[:, 0], seeds[:, 1]], stable=True)]
    radius = dynamics.GROW_RADIUS
    padded = F.pad(counts, (radius,) * 4)
    owners = torch.zeros(padded.numel(), dtype=torch.int64, device=ends.device)
    offset = torch.arange(2 * radius + 1, device=ends.device)
    window = offset[:, None] * padded.shape[1] + offset  # [11, 11]
    for first in range(0, len(seeds), SEEDS_AT_ONCE):
        some = seeds[first : first + SEEDS_AT_ONCE]
        index = (some[:, 0] * padded.shape[1] + some[:, 1])[:, None, None] + window  # [n, 11, 11]
        dense = padded.view(-1)[index] > dynamics.GROW_COUNT
        grown = torch.zeros(index.shape, device=ends.device)
        grown[:, radius, radius] = 1
        for _ in range(radius):
            grown = F.max_pool2d(grown, 3, 1, 1) * dense
        name = torch.arange(first + 1, first + len(some) + 1, device=ends.device)[:, None, None].expand_as(index)
        reached = grown > 0
        owners.scatter_reduce_(0, index[reached], name[reached], "amax")
    owners = owners.view(padded.shape)[radius : radius + height, radius : radius + width].flatten()
    labels = torch.zeros(height, width, dtype=torch.int32, device=ends.device)
    labels[inside] = owners[ends].int()
    return labels
