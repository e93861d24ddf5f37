"""The eight symmetries are a group, alike for arrays and tensors, and vectors turn as the image that they point in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dinocell.images.geometry import symmetry
from dinocell.images.geometry.symmetry import Turn

ALL = [Turn(number=number) for number in range(8)]
SQUARE = np.arange(9).reshape(3, 3)


def test_they_are_eight_and_closed() -> None:
    made = {turn.apply(SQUARE).tobytes() for turn in ALL}
    assert len(made) == 8
    assert {second.apply(first.apply(SQUARE)).tobytes() for first in ALL for second in ALL} == made


@pytest.mark.parametrize("turn", ALL)
def test_each_is_undone_by_its_inverse(turn: Turn) -> None:
    image = np.arange(2 * 12).reshape(2, 3, 4)
    np.testing.assert_array_equal(turn.undo(turn.apply(image)), image)
    np.testing.assert_array_equal(turn.apply(turn.inverse.apply(image)), image)


def test_mirroring_and_turning_name_them_all() -> None:
    image = np.arange(12).reshape(3, 4)
    for flip_y, flip_x, quarters in itertools.product((False, True), (False, True), range(-1, 6)):
        moved = image[::-1] if flip_y else image
        moved = np.rot90(moved[:, ::-1] if flip_x else moved, quarters)
        turn = Turn.of(flip_y=flip_y, flip_x=flip_x, quarters=quarters)
        np.testing.assert_array_equal(turn.apply(image), moved)


@pytest.mark.parametrize("turn", ALL)
def test_the_table_shows_the_image(turn: Turn) -> None:
    assert symmetry.__doc__
    lines = symmetry.__doc__.splitlines()
    first = next(number for number, line in enumerate(lines) if "image   " in line)
    column = lines[first].index("a b") + 6 * turn.number
    shown = [list(line[column : column + 3 : 2]) for line in lines[first : first + 2]]
    assert turn.apply(np.array([["a", "b"], ["c", "d"]])).tolist() == shown


@pytest.mark.parametrize("turn", ALL)
def test_tensors_turn_as_arrays(turn: Turn) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    tensor = turn.apply_tensor(torch.from_numpy(maps))
    np.testing.assert_array_equal(tensor.numpy(), turn.apply(maps))
    array = turn.apply(maps)
    turn.turn_vectors(array, [(2, 0)])
    turn.turn_vectors(tensor, [(2, 0)])
    np.testing.assert_array_equal(tensor.numpy(), array)
    np.testing.assert_array_equal(array[:, 1], turn.apply(maps[:, 1]))


@pytest.mark.parametrize("turn", ALL)
def test_a_gradient_turns_with_its_image(turn: Turn) -> None:
    """Against numerical differentiation of the turned image."""
    image = np.random.default_rng(1).normal(size=(7, 9))
    vectors = turn.apply(np.stack(np.gradient(image)))
    turn.turn_vectors(vectors, [(0, 1)])
    np.testing.assert_allclose(vectors, np.stack(np.gradient(turn.apply(image))))
    assert vectors.flags.c_contiguous


@pytest.mark.parametrize("turn", ALL)
def test_vectors_are_undone_too(turn: Turn) -> None:
    vectors = np.random.default_rng(2).normal(size=(2, 4, 5))
    back = turn.apply(vectors)
    turn.turn_vectors(back, [(0, 1)])
    back = turn.undo(back)
    turn.inverse.turn_vectors(back, [(0, 1)])
    np.testing.assert_array_equal(back, vectors)
