"""Block-wise patch masking for iBOT (BEiT, arXiv:2106.08254, algorithm 1; batch policy of DINOv2's collate).

Random numbers come from `random.Random` in upstream's order of calls, so one seed gives the masks upstream gives.
"""

import math
import random
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_MIN_PATCHES = 4
_MAX_FRACTION = 0.5
_MIN_ASPECT = 0.3
_TRIES = 10

BoolArray = npt.NDArray[np.bool_]


def _add_block(mask: BoolArray, most: float, rng: random.Random) -> int:
    """Mask one rectangle of at most `most` new patches in place; returns the number of new ones (0: no luck)."""
    height, width = mask.shape
    low, high = math.log(_MIN_ASPECT), math.log(1 / _MIN_ASPECT)
    for _ in range(_TRIES):
        area = rng.uniform(_MIN_PATCHES, most)
        aspect = math.exp(rng.uniform(low, high))
        h = round(math.sqrt(area * aspect))
        w = round(math.sqrt(area / aspect))
        if w >= width or h >= height:
            continue
        top = rng.randint(0, height - h)
        left = rng.randint(0, width - w)
        block = mask[top : top + h, left : left + w]
        new = h * w - int(block.sum())
        if 0 < new <= most:
            block[:] = True
            return new
    return 0


def block_mask(grid: tuple[int, int], patches: int, rng: random.Random) -> BoolArray:
    """Mask about `patches` patches of a grid in rectangles; may undershoot, never overshoots.

    Args:
        grid: rows and columns of patches.
        patches: patches to mask.
        rng: random numbers.

    Returns:
        bool (rows, columns), True = masked.
    """
    mask = np.zeros(grid, dtype=bool)
    masked = 0
    while masked < patches:
        new = _add_block(mask, min(patches - masked, _MAX_FRACTION * mask.size), rng)
        if new == 0:
            break
        masked += new
    return mask


def batch_masks(
    images: int,
    grid: tuple[int, int],
    rng: random.Random,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
) -> BoolArray:
    """Masks for the global crops of a batch: int(probability x images) of them are masked, in shuffled order.

    The masked ones share out the mask ratios evenly: the i-th draws from the i-th of equal bins of `ratio`.

    Args:
        images: global crops in the batch (2 B).
        grid: rows and columns of patches.
        rng: random numbers.
        probability: share of the crops that are masked, in [0, 1].
        ratio: smallest and largest share of masked patches.

    Returns:
        bool [images, rows, columns], True = masked.
    """
    masked_images = int(images * probability)
    # float32 throughout, as upstream's torch.linspace: the truncated patch counts then agree
    edges = np.linspace(*ratio, masked_images + 1, dtype=np.float32)
    patches = grid[0] * grid[1]
    masks = []
    for low, high in pairwise(edges):
        share = low + (high - low) * np.float32(rng.random())
        masks.append(block_mask(grid, int(np.float32(patches) * share), rng))
    masks += [np.zeros(grid, dtype=bool)] * (images - masked_images)
    rng.shuffle(masks)
    return np.stack(masks)  # [images, rows, columns]
