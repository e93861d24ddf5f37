"""Flow targets with torch operations, on whatever device the labels are; results equal the CPU kernels'.

Cells are packed into stacks of boxes of about the same size, where a diffusion step is a 3×3 mean times a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinocell.objectives.diffusion import FLAT, SETTLED
from dinocell.objectives.flows import Variant, masks_to_flows
from dinocell.objectives.regions import split_fragments

# Box sides are rounded up to multiples of this, so that one stack holds many cells.
SIDE_STEP = 16
# Pixels of one stack, which bounds the memory of the diffusion.
STACK = 1 << 24
CHECK_EVERY = 64


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Foreground pixels and their cells on the device; [P] per pixel, [n] per cell."""

    y: Tensor  # [P]
    x: Tensor  # [P]
    cell: Tensor  # [P] 0 … n − 1
    top: Tensor  # [n]
    left: Tensor  # [n]
    height: Tensor  # [n]
    width: Tensor  # [n]
    shape: tuple[int, int]

    @property
    def count(self) -> int:
        return int(self.top.numel())


def masks_to_flows_device(labels: Tensor, variant: Variant = "cellpose") -> Tensor:
    """As `flows.masks_to_flows`, for a tensor (H, W) of integers, with the result (2, H, W) float32 on its device.

    Apple's MPS has no float64, which the heat of long cells needs: there the CPU kernels run instead.
    """
    if labels.device.type == "mps":
        return torch.from_numpy(masks_to_flows(labels.cpu().numpy(), variant)).to(labels.device)
    labels = labels.long()
    if variant == "leak_free":
        whole = split_fragments(_compact(labels).to(torch.int32).cpu().numpy())
        labels = torch.from_numpy(whole).to(labels.device)
    flows = torch.zeros(2, *labels.shape, dtype=torch.float32, device=labels.device)
    pixels = _find_pixels(labels)
    if pixels.count == 0:
        return flows
    steps = 2 * (pixels.height + pixels.width + 2)  # [n]
    if variant == "cellpose":
        steps = steps.max().expand_as(steps)
    source = _sources(pixels, variant)  # [P]
    dy, dx, heat = _solve(pixels, source, steps)
    if variant == "cellpose":
        image = torch.zeros(labels.shape[0] + 2, labels.shape[1] + 2, dtype=torch.float64, device=labels.device)
        image[pixels.y + 1, pixels.x + 1] = heat
        dy = image[pixels.y + 2, pixels.x + 1] - image[pixels.y, pixels.x + 1]
        dx = image[pixels.y + 1, pixels.x + 2] - image[pixels.y + 1, pixels.x]
    flows[:, pixels.y, pixels.x] = _unit(dy, dx, heat).float()
    return flows


def _compact(labels: Tensor) -> Tensor:
    """Labels (H, W) renumbered without gaps, 0 stays 0."""
    numbers, inverse = torch.unique(labels, return_inverse=True)
    return inverse + (0 if numbers.numel() and numbers[0] == 0 else 1)


def _find_pixels(labels: Tensor) -> _Pixels:
    y, x = torch.nonzero(labels > 0, as_tuple=True)  # [P]
    numbers, cell = torch.unique(labels[y, x], return_inverse=True)
    zeros = torch.zeros(numbers.numel(), dtype=torch.int64, device=labels.device)
    top, left = (zeros.scatter_reduce(0, cell, v, "amin", include_self=False) for v in (y, x))
    bottom, right = (zeros.scatter_reduce(0, cell, v, "amax", include_self=False) for v in (y, x))
    return _Pixels(
        y=y,
        x=x,
        cell=cell,
        top=top,
        left=left,
        height=bottom - top + 1,
        width=right - left + 1,
        shape=(int(labels.shape[0]), int(labels.shape[1])),
    )


def _sources(pixels: _Pixels, variant: Variant) -> Tensor:
    """Heat that each pixel adds per step, [P] float64: shares of 1 at the cell's centre pixels, 0 elsewhere."""
    cell, n = pixels.cell, pixels.count
    zeros = torch.zeros(n, dtype=torch.int64, device=cell.device)
    y, x = pixels.y - pixels.top[cell], pixels.x - pixels.left[cell]  # [P]
    size = zeros.scatter_add(0, cell, torch.ones_like(cell))
    sums = [zeros.scatter_add(0, cell, v) for v in (y, x)]
    if variant == "cellpose":
        sums = [size * _round_half_even(total, size) for total in sums]
    far_y, far_x = ((size[cell] * v - total[cell]).double() for v, total in zip((y, x), sums, strict=True))
    distance = far_y.square() + far_x.square()  # [P]
    best = torch.zeros(n, dtype=torch.float64, device=cell.device)
    best = best.scatter_reduce(0, cell, distance, "amin", include_self=False)
    nearest = distance == best[cell]
    if variant == "cellpose":
        order = torch.arange(len(cell), device=cell.device)
        last = len(cell)
        first = torch.full_like(zeros, last).scatter_reduce(0, cell, torch.where(nearest, order, last), "amin")
        nearest = order == first[cell]
    ties = zeros.scatter_add(0, cell, nearest.long())
    return nearest.double() / ties[cell]


def _round_half_even(total: Tensor, count: Tensor) -> Tensor:
    quotient = total // count
    twice = 2 * (total - quotient * count)
    return quotient + ((twice > count) | ((twice == count) & (quotient % 2 == 1))).long()


def _solve(pixels: _Pixels, source: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences dy, dx within each cell alone, and heat, of every pixel: three [P] float64."""
    results = [torch.zeros_like(source) for _ in range(3)]
    padded = (pixels.height + 2 + SIDE_STEP - 1) // SIDE_STEP, (pixels.width + 2 + SIDE_STEP - 1) // SIDE_STEP
    code = padded[0] * (1 << 20) + padded[1]  # [n]
    for value in torch.unique(code).tolist():
        rows, columns = (value >> 20) * SIDE_STEP, (value & ((1 << 20) - 1)) * SIDE_STEP
        members = torch.nonzero(code == value)[:, 0]
        members = members[torch.argsort(steps[members], descending=True)]
        for some in members.split(max(1, STACK // (rows * columns))):
            _solve_stack(pixels, source, steps, some, (rows, columns), results)
    return results[0], results[1], results[2]


def _solve_stack(
    pixels: _Pixels, source: Tensor, steps: Tensor, members: Tensor, box: tuple[int, int], results: list[Tensor]
) -> None:
    """Solves cells `members` (steps descending) in one stack [m, rows, columns] and fills `results` at their pixels."""
    place = torch.full((pixels.count,), -1, dtype=torch.int64, device=source.device)
    place[members] = torch.arange(len(members), device=source.device)
    chosen = torch.nonzero(place[pixels.cell] >= 0)[:, 0]
    cell = pixels.cell[chosen]
    spot = place[cell], pixels.y[chosen] - pixels.top[cell] + 1, pixels.x[chosen] - pixels.left[cell] + 1
    mask = torch.zeros(len(members), *box, dtype=torch.float64, device=source.device)  # [m, rows, columns]
    start = torch.zeros_like(mask)
    mask[spot] = 1
    start[spot] = source[chosen]
    heat = _diffuse(mask, start, steps[members])
    k, y, x = spot
    results[0][chosen] = heat[k, y + 1, x] - heat[k, y - 1, x]
    results[1][chosen] = heat[k, y, x + 1] - heat[k, y, x - 1]
    results[2][chosen] = heat[spot]


def _diffuse(mask: Tensor, source: Tensor, steps: Tensor) -> Tensor:
    """Heat [m, rows, columns] after each box's own number of steps (descending), or once it has settled."""
    heat = torch.zeros_like(mask)
    limits = steps.tolist()
    active = len(limits)
    for step in range(limits[0]):
        while limits[active - 1] <= step:
            active -= 1
        old = heat[:active] + source[:active]
        new = F.avg_pool2d(old[:, None], 3, stride=1, padding=1)[:, 0] * mask[:active]
        settled = step % CHECK_EVERY == CHECK_EVERY - 1 and bool((new - heat[:active] <= new * SETTLED).all())
        heat[:active] = new
        if settled:
            break
    return heat


def _unit(dy: Tensor, dx: Tensor, heat: Tensor) -> Tensor:
    """[2, P] vectors of length 1, or 0 at flat points; scaled first, so that tiny squares do not underflow."""
    scale = torch.maximum(dy.abs(), dx.abs())
    flat = scale <= heat * FLAT
    vector = torch.stack([dy, dx]) / torch.where(flat, 1, scale)
    return torch.where(flat, 0, vector / vector.square().sum(dim=0).sqrt().clamp(min=1))
