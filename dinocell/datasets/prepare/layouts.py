"""Layouts of published datasets on disk: each yields (stem, image file, function that makes the labels)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from dinocell.core.arrays import Labels
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.prepare import coco, published
from dinocell.datasets.prepare.cellpose import read_seg_masks
from dinocell.datasets.prepare.common import Found, Mask, Pair, Refusal, merge_masks
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.images.listing import LABEL_ENDINGS, SUFFIXES
from dinocell.images.read import read_image
from dinocell.images.readers.tiff import TIFFS
from dinocell.labels.files import read_labels


def find_pairs(config: PrepareConfig) -> tuple[list[Pair], list[Refusal]]:
    """Every image of a source with its labels, in order of path, and images without any.

    Raises:
        ConfigError: the source folder is missing or has nothing that fits the layout.
    """
    root = Path(config.src)
    if not root.is_dir():
        raise ConfigError(f"src {str(root)!r}: no such folder")
    found: list[Found] = []
    refused: list[Refusal] = []
    match config.layout:
        case "pairs" | "binary" | "contours" | "rois":
            for image, mask in _image_masks(root, config):
                if mask is None or not mask.is_file():
                    wanted = f" ({mask.relative_to(root).as_posix()})" if mask else ""
                    refused.append(Refusal(file=image.relative_to(root).as_posix(), reason=f"no mask{wanted}"))
                else:
                    found += _with_mask(image, mask, config)
        case "dsb2018":
            found = [Found(image=image, labels=partial(_per_object, image)) for image in _files(root, "**/images/*")]
        case "ctc":
            found = [Found(image=image, labels=partial(_instances, mask, config)) for image, mask in _ctc(root)]
        case "coco":
            found, refused = coco.find(root, config.annotations, config.images, config.leave_out)
        case "tyc":
            found = list(published.find_tyc(_files(root, config.images)))
        case "nd2_masks":
            found = list(published.find_nd2_masks(_files(root, config.images)))
    if not found and not refused:
        raise ConfigError(f"src {str(root)!r}: nothing of layout {config.layout!r} with images {config.images!r} in it")
    return _named(root, found), refused


def _named(root: Path, found: list[Found]) -> list[Pair]:
    """Stems are the files' own where those are unique, else made of the path below the source."""
    found = sorted(found, key=lambda item: (item.image, item.frame))
    relative = [item.image.relative_to(root) for item in found]
    times = Counter(f"{path.stem}{item.frame}".lower() for path, item in zip(relative, found, strict=True))
    pairs = []
    for item, path in zip(found, relative, strict=True):
        stem = path.stem + item.frame
        if times[stem.lower()] > 1:
            stem = "_".join((*path.parent.parts, stem))
        pairs.append(
            Pair(
                stem=re.sub(r"[^\w.\-]+", "_", stem),
                image=item.image,
                relative=path.as_posix() + item.frame,
                split_key=item.split_key or path.as_posix(),
                labels=item.labels,
                pixels=item.pixels,
            )
        )
    return pairs


def _with_mask(image: Path, mask: Path, config: PrepareConfig) -> list[Found]:
    """The pair, or one pair a frame where image and label image are films of equal length (YeaZ, phase contrast)."""
    match config.layout:
        case "contours":
            return [Found(image=image, labels=partial(published.outlined, mask))]
        case "rois":
            return [Found(image=image, labels=partial(published.polygons, mask, image))]
        case "binary":
            return [Found(image=image, labels=partial(_components, mask))]
    frames = _pages(mask)
    if frames > 1 and frames == _pages(image):
        return [
            Found(
                image=image,
                labels=partial(_instances, mask, config, frame),
                frame=f"_f{frame:03d}",
                pixels=partial(_page, image, frame),
            )
            for frame in range(frames)
        ]
    return [Found(image=image, labels=partial(_instances, mask, config))]


def _pages(file: Path) -> int:
    """Planes (Y, X) of a TIFF; 1 of anything else, of colour images and of what cannot be read."""
    if file.suffix.lower() not in TIFFS:
        return 1
    try:
        with tifffile.TiffFile(file) as tiff:
            return len(tiff.pages) if tiff.series and tiff.series[0].ndim == 3 else 1
    except Exception:  # tifffile raises many kinds for broken files, whose reading will say what is wrong
        return 1


def _page(file: Path, frame: int) -> npt.NDArray[Any]:
    try:
        return np.asarray(tifffile.imread(file, key=frame))
    except Exception as error:
        raise DataError(f"{file.name}, frame {frame}: cannot be decoded: {error}") from error


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(p for p in root.glob(pattern) if p.is_file() and p.suffix.lower() in SUFFIXES and p.name[0] != ".")


def _image_masks(root: Path, config: PrepareConfig) -> Iterator[tuple[Path, Path | None]]:
    if not config.mask_from:
        yield from _by_stem(root)
        return
    pattern = re.compile(config.mask_from)
    for image in _files(root, config.images):
        relative = image.relative_to(root).as_posix()
        if pattern.search(relative):
            target = root / pattern.sub(config.mask_to, relative, count=1)
            yield image, target if target.is_file() else _other_suffix(target)


def _other_suffix(target: Path) -> Path:
    """The mask beside `target` with another image type, e.g. .png for .tif."""
    for suffix in SUFFIXES:
        if target.with_suffix(suffix).is_file():
            return target.with_suffix(suffix)
    return target


def _by_stem(root: Path) -> Iterator[tuple[Path, Path | None]]:
    """images/ beside masks/ (or labels/) at any depth, paired by stem."""
    for folder in sorted(p for p in root.rglob("*") if p.is_dir() and p.name.lower() in ("images", "image", "img")):
        masks = next(
            (folder.parent / n for n in ("masks", "labels", "mask", "label") if (folder.parent / n).is_dir()), None
        )
        stems = {file.stem: file for file in _files(masks, "*")} if masks else {}
        for image in _files(folder, "*"):
            names = [image.stem + ending for ending in ("", *LABEL_ENDINGS)]
            yield image, next((stems[name] for name in names if name in stems), None)


def _ctc(root: Path) -> Iterator[tuple[Path, Path]]:
    """Frames tNNN.tif of each sequence with man_segNNN.tif of gold truth, else of silver truth."""
    for sequence in sorted(p for p in root.rglob("*") if p.is_dir() and re.fullmatch(r"\d\d", p.name)):
        masks: dict[int, Path] = {}
        for truth in ("ST", "GT"):  # gold overrides silver
            for file in _files(sequence.parent / f"{sequence.name}_{truth}" / "SEG", "man_seg*.tif"):
                if number := re.fullmatch(r"man_seg(\d+)", file.stem):
                    masks[int(number.group(1))] = file
        for image in _files(sequence, "t*.tif"):
            number = re.fullmatch(r"t(\d+)", image.stem)
            if number and int(number.group(1)) in masks:
                yield image, masks[int(number.group(1))]


def _instances(mask: Path, config: PrepareConfig, frame: int | None = None) -> tuple[Labels, list[str]]:
    if frame is not None:
        labels = _page(mask, frame).astype(np.int32)
    else:
        labels = read_seg_masks(mask) if mask.name.endswith("_seg.npy") else read_labels(mask)
    if config.background:
        labels = np.where(labels == config.background, 0, labels)
    values = np.unique(labels)
    if values.size == 2 and values[0] == 0 and values[1] == 255:
        raise DataError("the mask has only 0 and 255: a foreground mask, not instances; use layout=binary")
    return labels.astype(np.int32), []


def _components(mask: Path) -> tuple[Labels, list[str]]:
    image = read_image(mask)
    plane = image.array[..., :3].max(axis=-1) if "S" in image.axes else np.squeeze(image.array)
    if plane.ndim != 2:
        raise DataError(f"the mask has shape {image.array.shape}, not one plane")
    levels = np.unique(plane)
    if levels.size > 64:
        raise DataError(f"the mask has {levels.size}gray levels: it looks like an image")
    labels, _ = ndimage.label(plane > (levels[0] + levels[-1]) / 2 if levels.size > 1 else plane > 0)
    return labels.astype(np.int32), ["touching objects of a foreground mask are one label"]


def _per_object(image: Path) -> tuple[Labels, list[str]]:
    """DSB 2018: ID/images/ID.png and one 0/255 mask an object in ID/masks/; overlaps go to the smaller object."""
    files = _files(image.parent.parent / "masks", "*")
    if not files:
        raise DataError("no masks/ folder beside images/")
    masks = [_boolean(file) for file in files]
    shapes = {mask.shape for mask in masks}
    if len(shapes) > 1:
        raise DataError(f"its masks have different sizes: {sorted(shapes)}")
    return merge_masks(masks)


def _boolean(file: Path) -> Mask:
    image = read_image(file)
    array: npt.NDArray[Any] = image.array[..., :3].max(axis=-1) if "S" in image.axes else image.array
    return np.asarray(array > 0)
