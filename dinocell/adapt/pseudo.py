"""The model's own segmentation of the unlabelled crops, as a labelled dataset: what the decoder is re-aligned to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.adapt.image_scale import AsItIs, scaled
from dinocell.core import log
from dinocell.core.errors import DataError
from dinocell.core.files import atomic_write_bytes, atomic_write_text
from dinocell.curation.manifest import read_rows
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.segmentation import SegmentationResult, Segmenter

LIMIT = 160  # crops segmented
UNSURE = 0.2  # a pixel outside the cells found with a probability above is left out of the loss
DATASET = """\
name: model-predictions
modality: unknown
fully_annotated: true
licence: that of the images
source: predictions of the model that is adapted, not annotations
"""


def write_pseudo_labels(model: Segmenter, crops: Path, out: Path, seed: int, scale: float = 1.0) -> int:
    """Segment up to `LIMIT` curated crops into out/{train,val}/{images,masks,ignore}; returns the cells found.

    The crops are brought to the model's scale first, by `scale`, and written at it.

    A tenth of the crops, and four where there are eight, go to val: whole source images, where there are several. A
    second call does nothing.

    Raises:
        DataError: fewer than two crops, or the model finds no cell in any of them.
    """
    done = out / "complete.json"
    if done.is_file():
        return int(json.loads(done.read_text(encoding="utf-8"))["cells"])
    files, held = chosen_crops(crops, seed)
    segmenter = AsItIs(model)
    cells = {"train": 0, "val": 0}
    for number, path in enumerate(log.progress(files, "the model's own labels", total=len(files), unit="crops")):
        split = "val" if number < held else "train"
        gray = scaled(to_gray(read_image(path)), scale)
        result = segmenter.segment(gray)
        cells[split] += result.count
        arrays = {"images": gray, "masks": result.labels.astype(np.uint16), "ignore": unsure_pixels(result)}
        for kind, array in arrays.items():
            _write_png(out / split / kind / f"{path.stem}.png", array)
    if not all(cells.values()):
        raise DataError(
            f"the model finds {sum(cells.values())} cells in {len(files)} crops of these images: too few to adapt to "
            "by itself; give a few labelled images with --labels, or check with `dinocell segment` what it sees"
        )
    atomic_write_text(out / "dataset.yaml", DATASET)
    atomic_write_text(done, json.dumps({"crops": len(files), "cells": sum(cells.values())}))
    return sum(cells.values())


def chosen_crops(crops: Path, seed: int) -> tuple[list[Path], int]:
    """Up to `LIMIT` of the crops that curation kept, in random order by seed, and how many of the first are for val.

    Crops of one source image follow each other, so that val ends between two sources (unless there is only one).
    """
    manifest = read_rows(crops / "manifest.csv")
    rows = sorted((row["crop"], row["source"]) for row in manifest if row["status"] == "kept")
    if len(rows) < 2:
        raise DataError(f"{crops}: curation kept {len(rows)} crops; the reasons are in rejected.csv; give more images")
    rng = np.random.default_rng(seed)
    rows = [rows[index] for index in rng.permutation(len(rows))[:LIMIT]]
    sources = list(dict.fromkeys(source for _, source in rows))
    rows.sort(key=lambda row: sources.index(row[1]))
    held = wanted = max(len(rows) // 10, min(4, len(rows) // 2))
    while held < len(rows) and rows[held][1] == rows[held - 1][1]:
        held += 1
    return [crops / crop for crop, _ in rows], held if held < len(rows) else wanted


def unsure_pixels(result: SegmentationResult) -> NDArray[np.uint8]:
    """255 where the model is not sure that there is no cell, and found none; else 0."""
    return np.where((result.probability > UNSURE) & (result.labels == 0), 255, 0).astype(np.uint8)


def _write_png(path: Path, array: NDArray[Any]) -> None:
    ok, encoded = cv2.imencode(".png", array)
    assert ok
    atomic_write_bytes(path, encoded.tobytes(), durable=False)
