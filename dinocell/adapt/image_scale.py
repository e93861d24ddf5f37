"""Size of the cells in the user's images, estimated once: everything else then sees them as the model does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.adapt.config import AdaptConfig, crop_spans
from dinocell.core import log
from dinocell.core.errors import DinoCellError
from dinocell.core.files import atomic_write_text
from dinocell.images.geometry.resize import resize_image
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.preprocess import preprocess_plane
from dinocell.images.listing import list_images
from dinocell.images.read import read_image
from dinocell.models import ModelCard
from dinocell.predict.large.regions import WholeSource
from dinocell.segmentation import SegmentationResult, Segmenter

LOOKED_AT = 6  # images
SIDE = 1536  # of the part looked at, px
SAME = 1.1  # scales nearer to 1 than this factor are none


@dataclass(frozen=True, kw_only=True)
class ImageScale:
    """Factor from the images' pixels to the model's, the cells' diameter (px; None if unknown), the shortest side."""

    scale: float
    diameter: float | None
    side: int


class AsItIs:
    """A model that takes images at their own scale, whatever it would estimate: they have been brought to its scale."""

    def __init__(self, model: Segmenter) -> None:
        self._model = model

    def segment(self, image: Any) -> SegmentationResult:
        """Segment one plane."""
        return self._model.segment(image, diameter="own")


def images_scale(model: Segmenter, config: AdaptConfig) -> ImageScale:
    """The scale, found once and kept in OUT/scale.json.

    Where the model estimates scales (it was trained on rescaled images), that is the median over some of the images
    where it is sure, else the scale usual in its training; for other models 1. `diameter` says it instead.
    """
    file = Path(config.out) / "scale.json"
    if file.is_file():
        return ImageScale(**json.loads(file.read_text(encoding="utf-8")))
    found = _find(model, config)
    atomic_write_text(file, json.dumps(asdict(found)) + "\n")
    return found


def _find(model: Segmenter, config: AdaptConfig) -> ImageScale:
    images = _some(config.images)
    side = min((min(image.shape) for image in images), default=0)
    trained = model.card.training.diameters
    if trained is not None and config.diameter:
        scale = trained.scale_for(config.diameter)
        log.info(f"cells of {config.diameter:g} px, as given: images are scaled by {scale:.3g}")
        return ImageScale(scale=_rounded(scale), diameter=config.diameter, side=side)
    if trained is None or not model.card.rescales:
        return ImageScale(scale=1.0, diameter=None, side=side)
    looks = [model.estimate_diameter(WholeSource(preprocess_plane(image, model.preprocess))) for image in images]
    sure = [look for look in looks if look.diameter is not None]
    if not sure:
        log.warning(
            f"the model is sure of the cells' size in none of {len(looks)} images: they are scaled by "
            f"{trained.usual:.3g}, as in training; say the size if you know it, diameter=PX"
        )
        return ImageScale(scale=_rounded(trained.usual), diameter=None, side=side)
    diameter = float(np.median([look.diameter for look in sure if look.diameter is not None]))
    scale = _rounded(trained.scale_for(diameter))
    log.info(
        f"cells of about {diameter:.0f} px (the model is sure in {len(sure)} of {len(looks)} images looked at): images "
        f"are scaled by {scale:.3g}"
    )
    return ImageScale(scale=scale, diameter=diameter, side=side)


def _rounded(scale: float) -> float:
    return 1.0 if 1 / SAME < scale < SAME else round(scale, 3)


def _some(sources: Sequence[str]) -> list[NDArray[Any]]:
    """The middle of a few images that can be read as one plane and are not constant; curation reports the others."""
    paths, found = list_images(list(sources)), []
    for index in np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_AT)).round():
        try:
            gray = to_gray(read_image(paths[int(index)]))
        except (DinoCellError, ValueError):
            continue
        rows, columns = (slice(max((side - SIDE) // 2, 0), max((side - SIDE) // 2, 0) + SIDE) for side in gray.shape)
        part = gray[rows, columns]
        if part.min() < part.max():
            found.append(part)
    return found


def at_scale(config: AdaptConfig, found: ImageScale, card: ModelCard) -> AdaptConfig:
    """The settings with crops that show as much as the model sees at once, at the scale of these images."""
    if found.scale == 1:
        return config
    size = round(config.curate.size / found.scale)
    if not found.side or size <= found.side:
        return replace(config, curate=replace(config.curate, size=size))
    size = max(found.side, min(config.curate.size, size))  # smaller images: less of them fits into a crop
    spans = crop_spans(card, size * found.scale)
    large, small = (tuple(spans[name]) for name in ("global_scale", "local_scale"))
    augment = replace(config.pretrain.augment, global_scale=(large[0], large[1]), local_scale=(small[0], small[1]))
    pretrain = replace(config.pretrain, augment=augment)
    return replace(config, curate=replace(config.curate, size=size), pretrain=pretrain)


def scaled(gray: NDArray[Any], scale: float) -> NDArray[Any]:
    """Resize an image (H, W) by a factor."""
    if scale == 1:
        return gray
    height, width = (max(round(side * scale), 1) for side in gray.shape)
    return resize_image(gray, (height, width), enlarging="linear")
