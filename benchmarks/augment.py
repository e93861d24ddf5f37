"""Multi-crop augmentation on one core: ours against the same operations in Pillow, as upstream's pipeline does them.

    python benchmarks/augment.py [--blur P] [--json FILE]

Both make 2 global crops of 512 px and 8 local ones of 208 px from 1,024 px images: random resized crop (bicubic,
antialiased), flip, brightness and contrast jitter, blur, solarisation. Upstream works on RGB pictures and hands over
normalised float tensors; ours on one gray byte a pixel, normalised on the device. Times are CPU seconds, best of three.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dinocell.pretrain.config import AugmentConfig
from dinocell.pretrain.data.augment import crop_window, multi_crop, sample_rng

IMAGES, REPEATS = 6, 3
MEAN = np.array((0.485, 0.456, 0.406), np.float32)[:, None, None]
STD = np.array((0.229, 0.224, 0.225), np.float32)[:, None, None]


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blur", type=float, default=0.01, help="blur probability (0.99: the published run)")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = AugmentConfig(blur_probability=arguments.blur)
    images = [_texture(seed) for seed in range(IMAGES)]
    gray = [Image.fromarray(image) for image in images]
    rgb = [picture.convert("RGB") for picture in gray]
    seconds = {
        "ours (OpenCV, gray uint8)": best(
            lambda: [multi_crop(image, config, sample_rng(0, n)) for n, image in enumerate(images)]
        ),
        "Pillow, gray uint8": best(lambda: [pillow_crops(p, config, n, floats=False) for n, p in enumerate(gray)]),
        "Pillow, RGB to float tensor": best(
            lambda: [pillow_crops(p, config, n, floats=True) for n, p in enumerate(rgb)]
        ),
    }
    ours = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(
            f"{name:30} {value / IMAGES * 1e3:7.1f} ms an image  {IMAGES / value:6.1f} images/s  {value / ours:5.1f} ×"
        )
    if arguments.json:
        rows = {name: value / IMAGES for name, value in seconds.items()}
        Path(arguments.json).write_text(json.dumps({"seconds_per_image": rows}, indent=1) + "\n", encoding="utf-8")


def best(function: Callable[[], object]) -> float:
    """Least CPU seconds of `REPEATS` calls."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def pillow_crops(picture: Image.Image, config: AugmentConfig, sample: int, floats: bool) -> list[np.ndarray]:
    """The same crops and probabilities with Pillow, one view after another."""
    rng = sample_rng(1, sample)
    crops = []
    for index in range(2 + config.local_crops):
        scale, size = (
            (config.global_scale, config.global_size) if index < 2 else (config.local_scale, config.local_size)
        )
        y, x, height, width = crop_window((picture.height, picture.width), scale, config.aspect, rng)
        view = picture.crop((x, y, x + width, y + height)).resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < config.horizontal_flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < config.jitter_probability:
            view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.6, 1.4))
            view = ImageEnhance.Contrast(view).enhance(rng.uniform(0.6, 1.4))
        if rng.random() < config.blur_probability:
            view = view.filter(ImageFilter.GaussianBlur(rng.uniform(*config.blur_sigma)))
        if index == 1 and rng.random() < config.solarize_probability:
            view = ImageOps.solarize(view, 128)
        crops.append(_normalised(view) if floats else np.asarray(view))
    return crops


def _normalised(view: Image.Image) -> np.ndarray:
    chw = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))
    return (chw.astype(np.float32) / 255 - MEAN) / STD


def _texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(1024, 1024)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
