"""Symmetries of the square: the eight ways to turn and mirror an image that move pixels onto pixels.

A turn mirrors x or does not, then makes 0 to 3 quarter turns counter-clockwise:

    number       0     1     2     3     4     5     6     7
    mirrors x    -     -     -     -     yes   yes   yes   yes
    quarters     0     1     2     3     0     1     2     3

    image        a b   b d   d c   c a   b a   a c   c d   d b
                 c d   a c   b a   d b   d c   b d   a b   c a

    vector       y     -x    -y    x     y     x     -y    -x      rows grow downwards
                 x     y     -x    -y    -x    y     x     -y

Number 5 swaps y and x, number 6 mirrors y. 1 and 3 undo each other, the others themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt


class Tensor(Protocol):
    """The part of a torch tensor that is used here; this room does not import torch."""

    def flip(self, *dims: int) -> Self:
        """Mirror these axes."""

    def rot90(self, k: int, dims: tuple[int, int]) -> Self:
        """Turn in the plane of two axes."""


Element = TypeVar("Element", bound=np.generic)
TensorType = TypeVar("TensorType", bound=Tensor)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One of the eight symmetries of the square, by its number in the table above.

    Attributes:
        number: 0 (the identity) to 7.
    """

    number: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.number < 8

    @classmethod
    def of(cls, *, flip_y: bool = False, flip_x: bool = False, quarters: int = 0) -> Turn:
        """Find the symmetry that mirrors y, then x, then makes counter-clockwise quarter turns."""
        return cls(number=4 * (flip_y != flip_x) + (quarters + 2 * flip_y) % 4)

    @property
    def mirrored(self) -> bool:
        """True if x is mirrored before the quarter turns."""
        return self.number >= 4

    @property
    def quarters(self) -> int:
        """Counter-clockwise quarter turns, 0 to 3."""
        return self.number % 4

    @property
    def inverse(self) -> Turn:
        """The symmetry that undoes this one."""
        return self if self.mirrored else Turn(number=-self.quarters % 4)

    def apply(self, array: npt.NDArray[Element]) -> npt.NDArray[Element]:
        """Turn the last two axes of an array (…, H, W); the result is contiguous."""
        mirrored = array[..., ::-1] if self.mirrored else array
        return np.ascontiguousarray(np.rot90(mirrored, self.quarters, axes=(-2, -1)))

    def undo(self, array: npt.NDArray[Element]) -> npt.NDArray[Element]:
        """Turn an array (…, H, W) back: `undo(apply(array))` equals `array`."""
        return self.inverse.apply(array)

    def apply_tensor(self, tensor: TensorType) -> TensorType:
        """Turn the last two axes of a tensor [..., H, W]."""
        mirrored = tensor.flip(-1) if self.mirrored else tensor
        return mirrored.rot90(self.quarters, (-2, -1))

    def turn_vectors(self, maps: Any, pairs: Sequence[tuple[int, int]]) -> None:
        """Turn, in place, the vectors whose components are among maps that were turned already.

        Args:
            maps: array (…, K, H, W) or tensor [..., K, H, W].
            pairs: indices among the K maps of the components (y, x) of each vector.
        """
        for row, column in pairs:
            y, x = 1 * maps[..., row, :, :], (-1 if self.mirrored else 1) * maps[..., column, :, :]  # copies
            turned = ((y, x), (-x, y), (-y, -x), (x, -y))[self.quarters]
            maps[..., row, :, :], maps[..., column, :, :] = turned
