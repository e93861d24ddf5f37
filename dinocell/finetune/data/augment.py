"""Random changes of training crops: where they are cut, how they are turned, and their gray values (§3.3.4).

Images here are standardised (zero mean, unit variance over the whole image). The backbone sees
gray = GRAY_MEAN + GRAY_STD · z, and brightness acts on that gray value; inverting an image and standardising it again
is −z.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.finetune.config import AugmentConfig
from dinocell.images.geometry.symmetry import Turn
from dinocell.models.vit.vision_transformer import GRAY_MEAN, GRAY_STD


def random_turn(config: AugmentConfig, rng: np.random.Generator) -> Turn:
    """Draw mirroring and a multiple of 90 degrees."""
    flip_y, flip_x = (bool(rng.integers(2)) if config.flips else False for _ in range(2))
    return Turn.of(flip_y=flip_y, flip_x=flip_x, quarters=int(rng.integers(4)) if config.rotations else 0)


def possible_turns(config: AugmentConfig) -> tuple[Turn, ...]:
    """List the symmetries that `random_turn` can draw, each once."""
    flips = (False, True) if config.flips else (False,)
    quarters = range(4) if config.rotations else range(1)
    numbers = {Turn.of(flip_y=y, flip_x=x, quarters=q).number for y in flips for x in flips for q in quarters}
    return tuple(Turn(number=number) for number in sorted(numbers))


def log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor whose logarithm is uniform between the bounds."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1])))) if bounds[0] < bounds[1] else bounds[0]


def augment_intensity(
    image: NDArray[np.float32], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change the gray values of a standardised crop (H, W): blur, gamma, noise, inversion, brightness, in turn."""
    if config.blur and rng.random() < config.blur:
        blurred = cv2.GaussianBlur(image, (0, 0), max(0.1, rng.uniform(*config.blur_sigma)))
        image = np.asarray(blurred, np.float32)
    if config.gamma != (1.0, 1.0):
        image = gamma_curve(image, log_uniform(config.gamma, rng))
    if config.noise and rng.random() < config.noise:
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(*config.noise_std))
    if config.invert and rng.random() < config.invert:
        image = -image
    return brighten(image, rng.uniform(*config.brightness))


def brighten(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Multiply the gray value GRAY_MEAN + GRAY_STD · z by `factor`, expressed on z."""
    return (image * np.float32(factor) + np.float32((factor - 1.0) * GRAY_MEAN / GRAY_STD)).astype(np.float32)


def gamma_curve(image: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Raise the crop's values, scaled to 0…1, to a power, keeping the crop's mean and standard deviation."""
    low, high = float(image.min()), float(image.max())
    deviation = float(image.std())
    if high - low < 1e-6 or deviation < 1e-6:
        return image
    curved = ((image - low) / (high - low)) ** exponent
    spread = float(curved.std())
    if spread < 1e-6:
        return image
    return ((curved - curved.mean()) * (deviation / spread) + image.mean()).astype(np.float32)


def crop_corner(
    shape: tuple[int, int], size: int, centre: tuple[float, float] | None, rng: np.random.Generator
) -> tuple[int, int]:
    """Top-left corner of a `size` × `size` window inside an image of `shape`.

    Uniform over all positions, or around `centre` (y, x), shifted by up to a quarter of the window.
    """
    limits = (shape[0] - size, shape[1] - size)
    if min(limits) < 0:
        raise ValueError(f"image {shape} is smaller than the window {size}")
    if centre is None:
        return int(rng.integers(limits[0] + 1)), int(rng.integers(limits[1] + 1))
    shift = rng.uniform(-size / 4, size / 4, size=2)
    corner = [round(c + s - size / 2) for c, s in zip(centre, shift, strict=True)]
    return min(max(corner[0], 0), limits[0]), min(max(corner[1], 0), limits[1])
