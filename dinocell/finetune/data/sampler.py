"""Order of training samples: the image of each is a pure function of the seed and the sample's number.

Sample numbers run through the whole training (0, 1, 2, …), so the crops seen do not depend on how many processes,
threads or restarts the training had.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dinocell.finetune.config import Sampling

_ORDER_STREAM = 1
_SAMPLE_STREAM = 2


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The random numbers of one sample (crop position, augmentation)."""
    return np.random.default_rng([seed, _SAMPLE_STREAM, number])


def dataset_shares(counts: Sequence[int], sampling: Sampling) -> NDArray[np.float64]:
    """Share of the samples that each dataset gets; `counts` are images per dataset. Sums to 1."""
    sizes = np.asarray(counts, dtype=np.float64)
    match sampling:
        case "proportional":
            weights = sizes
        case "balanced":
            weights = (sizes > 0).astype(np.float64)
        case "sqrt":
            weights = np.sqrt(sizes)
        case _:
            raise ValueError(f"sampling is {sampling!r}; proportional, balanced and sqrt exist")
    return weights / weights.sum()


class SampleOrder:
    """Maps a sample number to an image index.

    An epoch has as many samples as there are images. With `proportional` it is a permutation of all images; with the
    other rules each dataset fills its share, its own images in permuted order, as evenly repeated as the share allows.

    Args:
        dataset_of_image: number of each image's dataset, from 0.
        sampling: the rule.
        seed: of the order.
        shares: relative share of each dataset, instead of the rule's.
    """

    def __init__(
        self, dataset_of_image: Sequence[int], sampling: Sampling, seed: int, shares: Sequence[float] = ()
    ) -> None:
        if not len(dataset_of_image):
            raise ValueError("no images to sample from")
        owners = np.asarray(dataset_of_image)
        self._members = [np.flatnonzero(owners == d) for d in range(int(owners.max()) + 1)]
        given = np.asarray(shares, dtype=np.float64)
        self._shares = given / given.sum() if len(given) else dataset_shares([len(m) for m in self._members], sampling)
        self._weights: NDArray[np.float64] | None = None
        self._seed = seed
        self._latest: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))
        self.length = len(owners)

    def weighted(self, weights: Sequence[float]) -> SampleOrder:
        """The order in which each image is drawn in proportion to its weight (above 0) within its dataset's share."""
        order = copy.copy(self)
        order._weights = np.asarray(weights, dtype=np.float64)
        order._latest = (-1, np.empty(0, dtype=np.int64))
        return order

    def __call__(self, number: int) -> int:
        """Image index of sample `number`."""
        epoch, position = divmod(number, self.length)
        latest = self._latest  # one read: threads near the end of an epoch ask for two epochs at once
        if latest[0] != epoch:
            latest = self._latest = (epoch, self.epoch(epoch))
        return int(latest[1][position])

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Image indices of one epoch, in order, (images,)."""
        rng = np.random.default_rng([self._seed, _ORDER_STREAM, epoch])
        quotas = _round_to_total(self._shares * self.length, self.length, rng)
        parts = [self._drawn(members, int(quota), rng) for members, quota in zip(self._members, quotas, strict=True)]
        return rng.permutation(np.concatenate(parts))

    def _drawn(self, members: NDArray[np.int64], quota: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`quota` images of one dataset, in no particular order."""
        if self._weights is None:
            return _repeat_permuted(members, quota, rng)
        weights = self._weights[members]
        return np.repeat(members, _round_to_total(quota * weights / weights.sum(), quota, rng))


def _round_to_total(values: NDArray[np.float64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Integers that sum to `total`, each within 1 of its value; who is rounded up is drawn, so no dataset starves."""
    whole = np.floor(values + 1e-9).astype(np.int64)
    rest = np.clip(values - whole, 0.0, None)
    missing = total - int(whole.sum())
    if missing > 0:
        chosen = rng.choice(len(values), size=missing, replace=False, p=rest / rest.sum())
        whole[chosen] += 1
    return whole


def _repeat_permuted(members: NDArray[np.int64], quota: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))] if len(members) else []
    return np.concatenate(rounds)[:quota] if rounds else members[:0]
