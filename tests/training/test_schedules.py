"""Schedules against DINOv2's `CosineScheduler` written out with NumPy, and the learning-rate rules by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dinocell.training import schedules


def test_cosine_equals_the_published_array() -> None:
    base, final, total, warmup, start = 4e-3, 1e-6, 100, 10, 0.0
    steps = np.arange(total - warmup)
    expected = np.concatenate(
        [np.linspace(start, base, warmup), final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))]
    )
    ours = [schedules.cosine(i, base=base, final=final, total=total, warmup=warmup, start=start) for i in range(total)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert schedules.cosine(total + 5, base=base, final=final, total=total) == final


def test_linear_is_linspace_then_constant() -> None:
    expected = np.linspace(0.04, 0.07, 30)
    np.testing.assert_allclose([schedules.linear(i, 0.04, 0.07, 30) for i in range(30)], expected, rtol=1e-12)
    assert schedules.linear(1000, 0.04, 0.07, 30) == 0.07


def test_the_papers_effective_learning_rate() -> None:
    # 16 images on each of 8 GPUs with base 2e-4 (paper §3.3.2)
    assert schedules.scaled_learning_rate(2e-4, 128) == pytest.approx(7.071e-5, rel=1e-4)
    assert schedules.scaled_learning_rate(2e-4, 128, "none") == 2e-4
    assert schedules.scaled_learning_rate(1e-3, 512, "linear_256") == pytest.approx(2e-3)


def test_warm_up_reaches_the_peak_and_the_end_is_monotone() -> None:
    values = [schedules.cosine(i, base=1.0, final=0.1, total=50, warmup=8) for i in range(50)]
    assert max(values) == values[7] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(values[8:]))
    assert math.isclose(values[8], 1.0)
