"""Appearance of a layout of cells in three kinds of microscope: simple optics, not drawings of outlines.

Each renderer returns float32 intensities around 1 (transmitted light) or from 0 up (fluorescence), before the camera.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.datasets.synthetic.shapes import Float, Layout


def render_phase(rng: np.random.Generator, layout: Layout) -> Float:
    """Zernike phase contrast: bodies darker than the surround, bright halos, shade-off, rounded cells that shine.

    The halo is what the phase ring wrongly retards: a blurred copy of the phase image, subtracted.
    """
    phase = _phase_image(rng, layout, granularity=rng.uniform(0.15, 0.5))
    # Beyond a quarter wave contrast reverses: thick, rounded cells come out bright with a dark rim.
    thickness = layout.per_cell(np.where(rng.random(layout.count) < 0.1, rng.uniform(2.2, 2.7, layout.count), 1.0))
    retarded = np.sin(1.25 * phase * np.maximum(thickness, 1))
    halo = _blur(np.maximum(retarded, 0.25 * (thickness > 1.5)), rng.uniform(5, 9))
    wide = _blur(retarded, rng.uniform(14, 22))
    signal = (
        retarded - rng.uniform(0.7, 0.95) * (0.7 * halo + 0.3 * wide) + 0.5 * _debris(rng, layout.labels.shape, 6e-4)
    )
    sign = -1.0 if rng.random() < 0.2 else 1.0
    image = 1 - sign * rng.uniform(0.3, 0.5) * signal
    image += _out_of_focus(rng, image.shape, 0.10) + 0.02 * fractal_noise(rng, image.shape, 24)
    return _blur(image, rng.uniform(0.6, 1.0))


def render_brightfield(rng: np.random.Generator, layout: Layout) -> Float:
    """Bright-field slightly out of focus: thin dark and bright rims around bodies hardly darker than the surround.

    Defocus turns the curvature of the phase into intensity (transport of intensity), so flat parts vanish.
    """
    phase = _phase_image(rng, layout, granularity=rng.uniform(0.15, 0.35))
    phase = phase + 0.5 * _debris(rng, phase.shape, 5e-4)
    sharp, soft = _blur(phase, rng.uniform(0.7, 1.1)), _blur(phase, rng.uniform(2.2, 4.5))
    sign = 1.0 if rng.random() < 0.3 else -1.0
    image = 1 + sign * rng.uniform(0.45, 0.7) * (sharp - soft) - rng.uniform(0.0, 0.06) * sharp
    image += _out_of_focus(rng, image.shape, 0.05) + _dust_rings(rng, image.shape)
    image += 0.008 * fractal_noise(rng, image.shape, 32)
    return _blur(image.astype(np.float32), 0.5)


def render_fluorescence(rng: np.random.Generator, layout: Layout) -> Float:
    """Stained nuclei or cell bodies of very different brightness, texture, haze and light from other planes."""
    brightness = layout.per_cell(np.clip(rng.lognormal(-0.3, 0.5, layout.count), 0.25, 2.2))
    texture = 0.5 * fractal_noise(rng, layout.labels.shape, 5) + 0.5 * fractal_noise(rng, layout.labels.shape, 12)
    if rng.random() < 0.5:
        body = _nuclear_stain(rng, layout, texture)
    else:
        body = _cytoplasmic_stain(rng, layout, texture)
    image = body * brightness
    haze = _blur(image, rng.uniform(12, 20)) * rng.uniform(0.15, 0.4)
    image = image + haze + rng.uniform(0.03, 0.1) * (1 + 0.3 * fractal_noise(rng, image.shape, 90))
    image = image + np.abs(_out_of_focus(rng, image.shape, 0.35)) + 0.8 * _debris(rng, image.shape, 4e-4)
    return np.maximum(_blur(image, rng.uniform(0.8, 1.4)), 0)


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Float:
    """Smooth noise of mean about 0 and variance 1; `scale` is the size of its largest features, pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(3):
        step = max(scale / 2**octave, 1.5)
        coarse = rng.standard_normal((int(shape[0] / step) + 3, int(shape[1] / step) + 3), dtype=np.float32)
        total += np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32) * 0.6**octave
    return np.asarray((total - total.mean()) / max(float(total.std()), 1e-6), np.float32)


def _phase_image(rng: np.random.Generator, layout: Layout, granularity: float) -> Float:
    """Optical thickness of the cells: flat or domed bodies, nucleus, nucleoli and granules; 0 outside."""
    inside = layout.labels > 0
    dome = np.sqrt(np.clip(1 - layout.radial**2, 0, 1))
    edge = np.clip(layout.depth / rng.uniform(2.5, 4.5), 0, 1)
    flatness = rng.uniform(0.3, 0.8)
    body = edge * (flatness + (1 - flatness) * dome)
    body *= layout.per_cell(rng.uniform(0.65, 1.1, layout.count))
    # A ring of granules around a clearer nucleus with one or two dense nucleoli, as in most adherent cells.
    nucleus = np.clip((1 - layout.nuclear) * 5, 0, 1)
    around = 0.35 + 0.65 * np.exp(-((layout.nuclear - 1.2) ** 2) / 0.3)
    granules = np.clip(fractal_noise(rng, inside.shape, 3.5) - 0.3, -0.3, 2) * around
    content = granularity * granules * (1 - 0.8 * nucleus) + 0.08 * fractal_noise(rng, inside.shape, 9)
    content += rng.uniform(-0.22, 0.15) * nucleus + 0.45 * nucleus * _spots(rng, inside.shape, 0.006)
    return np.where(inside, body + edge * content, 0).astype(np.float32)


def _nuclear_stain(rng: np.random.Generator, layout: Layout, texture: Float) -> Float:
    edge = np.clip(layout.depth / 2.5, 0, 1)
    dome = 0.7 + 0.3 * np.sqrt(np.clip(1 - layout.radial**2, 0, 1))
    nucleoli = 1 - 0.5 * _spots(rng, edge.shape, 0.004)
    chromatin = 1 + rng.uniform(0.1, 0.25) * texture + 0.3 * _spots(rng, edge.shape, 0.01)
    return np.asarray(edge * dome * nucleoli * chromatin, np.float32)


def _cytoplasmic_stain(rng: np.random.Generator, layout: Layout, texture: Float) -> Float:
    edge = np.clip(layout.depth / 3, 0, 1)
    nucleus = np.clip((1 - layout.nuclear) * 5, 0, 1)
    around = np.exp(-((layout.nuclear - 1.15) ** 2) / 0.6)
    hollow = layout.per_cell(np.clip(rng.normal(0.35, 0.3, layout.count), -0.2, 0.75))
    body = (0.5 + 0.5 * around) * (1 - hollow * nucleus)
    fibres = np.clip(fractal_noise(rng, edge.shape, 4), -1, 2)
    return np.asarray(edge * body * np.maximum(1 + 0.25 * texture + rng.uniform(0.05, 0.3) * fibres, 0.1), np.float32)


def _spots(rng: np.random.Generator, shape: tuple[int, int], density: float) -> Float:
    """Soft round spots about 4 px wide, value up to 1."""
    seeds = (rng.random(shape, dtype=np.float32) < density).astype(np.float32)
    return np.clip(_blur(seeds, 1.5) * 12, 0, 1)


def _debris(rng: np.random.Generator, shape: tuple[int, int], density: float) -> Float:
    """Particles and fragments of up to about 6 px, far smaller than any cell, in the fields that have them."""
    field = np.zeros(shape, np.float32)
    for _ in range(int(rng.poisson(density * rng.uniform(0.2, 1.6) * shape[0] * shape[1]))):
        y, x = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        axes = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        cv2.ellipse(field, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.4, 1.2)), -1)
    return _blur(field, 0.8)


def _out_of_focus(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> Float:
    """A few large soft blobs, lighter or darker: floating cells and dirt far from the focal plane."""
    field = np.zeros(shape, np.float32)
    for _ in range(int(rng.poisson(1.2 * shape[0] * shape[1] / 256**2))):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        value = float(rng.uniform(0.4, 1) * rng.choice([-1, 1]))
        cv2.circle(field, centre, int(rng.integers(8, 26)), value, -1)
    return strength * _blur(field, 7)


def _dust_rings(rng: np.random.Generator, shape: tuple[int, int]) -> Float:
    """Rings with a dark heart: dust on a lens."""
    field = np.zeros(shape, np.float32)
    for _ in range(int(rng.poisson(0.8 * shape[0] * shape[1] / 256**2))):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        radius = int(rng.integers(5, 11))
        cv2.circle(field, centre, radius, 0.05, 2, cv2.LINE_AA)
        cv2.circle(field, centre, max(1, radius // 3), -0.08, -1, cv2.LINE_AA)
    return _blur(field, 1.2)


def _blur(image: NDArray[np.floating], sigma: float) -> Float:
    return np.asarray(cv2.GaussianBlur(image.astype(np.float32), (0, 0), float(sigma)), np.float32)
