"""Duplicate detection: identical bytes, identical pixels, or perceptually equal."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]

THUMBNAIL = 32
BANDS = (11, 11, 11, 11, 10, 10)
"""Bits of the bands of a 64-bit hash. Hashes that differ in fewer bits than there are bands agree in one band."""


def thumbnail(crop: Gray) -> Gray:
    """Area-averaged 32×32 version of a crop (or of its `thumbnails.shrink`, which gives the same in less time)."""
    return np.asarray(cv2.resize(crop, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def perceptual_hash(small: Gray) -> int:
    """64 bits: signs of the 8×8 lowest DCT coefficients (without the mean) against their median."""
    transform = cv2.dct(small.astype(np.float32))
    frequencies = transform[:8, :8].ravel()
    frequencies[0] = transform[8, 8]  # the mean says nothing about content: another frequency takes its bit
    ordered = np.sort(frequencies)
    bits = frequencies > (ordered[31] + ordered[32]) / 2
    return int.from_bytes(np.packbits(bits).tobytes())


def thumbnail_to_text(small: Gray) -> str:
    """Thumbnail as text for the journal."""
    return base64.b64encode(small.tobytes()).decode()


def thumbnail_from_text(text: str) -> Gray:
    """Inverse of `thumbnail_to_text`."""
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(THUMBNAIL, THUMBNAIL)


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Features by which a crop is compared with others."""

    code: int
    unit: npt.NDArray[np.float32]


def appearance(small: Gray) -> Appearance:
    """Features of a crop's `thumbnail`."""
    return Appearance(code=perceptual_hash(small), unit=_unit(small))


class DuplicateIndex:
    """Index of crops in the order given, which finds the earlier crop that a new one repeats."""

    def __init__(self, max_distance: int, min_correlation: float) -> None:
        assert max_distance < len(BANDS)
        self.max_distance = max_distance
        self.min_correlation = min_correlation
        self._bands: list[dict[int, list[int]]] = [defaultdict(list) for _ in BANDS]
        self._entries: list[tuple[Appearance, str]] = []

    def find(self, crop: Appearance) -> str | None:
        """Name of the earliest crop that is perceptually equal, or None; identical crops are always found."""
        for number in self._candidates(crop.code):
            other, name = self._entries[number]
            if (crop.code ^ other.code).bit_count() > self.max_distance:
                continue
            if float(crop.unit @ other.unit) >= self.min_correlation or np.array_equal(crop.unit, other.unit):
                return name
        return None

    def add(self, name: str, crop: Appearance) -> None:
        """Add a crop under a name."""
        for band, part in zip(self._bands, _parts(crop.code), strict=True):
            band[part].append(len(self._entries))
        self._entries.append((crop, name))

    def _candidates(self, code: int) -> Iterable[int]:
        found: set[int] = set()
        for band, part in zip(self._bands, _parts(code), strict=True):
            found.update(band.get(part, ()))
        return sorted(found)


def _parts(code: int) -> Iterator[int]:
    for width in BANDS:
        yield code & ((1 << width) - 1)
        code >>= width


def _unit(small: Gray) -> npt.NDArray[np.float32]:
    """Thumbnail as a vector of zero mean and unit length, so that a dot product is a correlation."""
    values = small.astype(np.float64).ravel()
    values -= values.mean()
    length = float(np.sqrt(values @ values))
    return np.asarray(values / length if length else values, dtype=np.float32)
