"""Convert one labelled source, checking every pair; what is refused is listed with its reason."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import yaml
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from dinocell.core import log
from dinocell.core.arrays import Labels
from dinocell.core.errors import ConfigError, DataError, first_line
from dinocell.core.files import atomic_write_text
from dinocell.datasets.labelled import SPLITS, open_dataset
from dinocell.datasets.prepare.common import Pair
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.prepare.layouts import find_pairs
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import write_labels

REPORT = "prepare_report.csv"
TINY = 4.0
"""Median object area (px) below which a label image is taken for an image."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One line of the report."""

    file: str
    status: str
    split: str = ""
    stem: str = ""
    objects: int = 0
    notes: str = ""


def prepare(config: PrepareConfig) -> list[Prepared]:
    """Write OUT/{train,val,test}/{images,masks} (or OUT/{images,masks} without splits), dataset.yaml and a report.

    Images are copied byte for byte, single images of a film or ND2 file become TIFFs; masks become label TIFFs,
    numbered 1 … N. Images without objects are kept: they are training data.

    Raises:
        ConfigError: nothing that fits the layout, or an output folder that already contains a dataset.
        DataError: every pair was refused.
    """
    out = Path(config.out)
    if any((out / part / "images").exists() for part in ("", *SPLITS)):
        raise ConfigError(f"out {str(out)!r} already contains a dataset: give another folder or remove it")
    pairs, refused = find_pairs(config)
    lines = [Prepared(file=item.file, status="refused", notes=item.reason) for item in refused]
    for pair in log.progress(pairs, "prepare", total=len(pairs)):
        lines.append(_prepare_one(pair, config, out))
    done = [line for line in lines if line.status == "done"]
    out.mkdir(parents=True, exist_ok=True)
    _write_report(out / REPORT, lines)
    if not done:
        raise DataError(f"{config.src}: all {len(lines)} pairs were refused, first: {lines[0].file}: {lines[0].notes}")
    _write_info(out, config)
    objects = sum(line.objects for line in done)
    log.info(f"{len(done)} images with {objects} objects: {out}; {len(lines) - len(done)} refused, see {out / REPORT}")
    return lines


def _prepare_one(pair: Pair, config: PrepareConfig, out: Path) -> Prepared:
    split = _split_of(pair.split_key, config)
    if split is None:
        return Prepared(file=pair.relative, status="refused", notes="in none of the splits")
    try:
        labels, notes = pair.labels()
        pixels = pair.pixels() if pair.pixels else None
        shape = pixels.shape if pixels is not None else to_gray(read_image(pair.image)).shape
        labels, more = check_labels(labels, (shape[0], shape[1]), config)
    except (DataError, OSError, ValueError) as error:
        return Prepared(file=pair.relative, status="refused", split=split, notes=first_line(error))
    images, masks = out / split / "images", out / split / "masks"
    images.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        shutil.copyfile(pair.image, images / f"{pair.stem}{pair.image.suffix.lower()}")
    else:
        tifffile.imwrite(images / f"{pair.stem}.tif", pixels, compression="zlib", metadata={"axes": "YX"})
    write_labels(masks / f"{pair.stem}.tif", labels, durable=False)
    count = int(labels.max(initial=0))
    told = "; ".join(notes + more)
    return Prepared(file=pair.relative, status="done", split=split, stem=pair.stem, objects=count, notes=told)


def _split_of(key: str, config: PrepareConfig) -> str | None:
    if not config.splits:
        return ""
    return next((name for name, pattern in config.splits.items() if re.search(pattern, key)), None)


def check_labels(labels: Labels, shape: tuple[int, int], config: PrepareConfig) -> tuple[Labels, list[str]]:
    """Labels numbered 1 … N without small objects, and notes on what is odd about them.

    Raises:
        DataError: another size than the image, or an image in place of labels.
    """
    if labels.shape != shape:
        raise DataError(f"mask of {labels.shape[0]}×{labels.shape[1]} px for an image of {shape[0]}×{shape[1]} px")
    areas = np.bincount(labels[labels > 0])
    present = areas[areas > 0]
    if present.size > 20 and np.median(present) < TINY:
        raise DataError(
            f"{present.size} labels with a median of {np.median(present):g} px: the mask looks like an image"
        )
    notes = []
    if config.split_components:
        labels = _split_components(labels)
        areas = np.bincount(labels[labels > 0])
    else:
        pieces = sum(_fragments(labels))
        notes += [f"{pieces} objects have several pieces"] if pieces else []
    small = np.flatnonzero((areas > 0) & (areas < config.min_area))
    if small.size:
        labels = np.where(np.isin(labels, small), 0, labels)
        notes.append(f"{small.size} objects under {config.min_area} px dropped")
    numbered = np.asarray(relabel_sequential(labels)[0], dtype=np.int32)
    if not numbered.any():
        notes.append("no objects")
    return numbered, notes


def _fragments(labels: Labels) -> list[bool]:
    return [
        bool(ndimage.label(labels[box] == number, np.ones((3, 3)))[1] > 1)
        for number, box in enumerate(ndimage.find_objects(labels), start=1)
        if box is not None
    ]


def _split_components(labels: Labels) -> Labels:
    out = np.zeros_like(labels)
    count = 0
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            pieces, found = ndimage.label(labels[box] == number, np.ones((3, 3)))
            out[box][pieces > 0] = pieces[pieces > 0] + count
            count += found
    return out


def _write_report(path: Path, lines: list[Prepared]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Prepared.__dataclass_fields__)
    writer.writerows([line.__dict__.values() for line in lines])
    atomic_write_text(path, text.getvalue())


def _write_info(out: Path, config: PrepareConfig) -> None:
    info = {
        "name": config.name or out.resolve().name,
        "modality": config.modality,
        "fully_annotated": config.fully_annotated,
        "licence": config.licence,
        "source": config.source,
        "citation": config.citation,
    }
    atomic_write_text(out / "dataset.yaml", yaml.safe_dump(info, sort_keys=False, allow_unicode=True))
    if not config.splits:
        open_dataset(out, "train", seed=config.seed)  # writes splits.json
