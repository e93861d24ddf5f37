"""COCO annotations: polygons, uncompressed and compressed RLE."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dinocell.core.arrays import Labels
from dinocell.core.errors import DataError, first_line
from dinocell.datasets.prepare.common import Found, Labeller, Mask, Refusal, merge_masks


def find(
    root: Path, annotations: str, images: str, leave_out: tuple[str, ...] = ()
) -> tuple[list[Found], list[Refusal]]:
    """Every image of every JSON file, known to splits as JSON name/image name, and refusals of files not there.

    An image is looked for where the JSON says, then in the JSON's own folder and its images/, then by name below root.
    Objects of categories (or supercategories) named in `leave_out` are left out.

    Raises:
        DataError: a JSON file that is not COCO.
    """
    by_name: dict[str, Path] = {}
    for file in sorted(root.glob(images)):
        by_name.setdefault(file.name, file)
    found: list[Found] = []
    refused: list[Refusal] = []
    for file in sorted(root.glob(annotations)):
        for entry, objects in _entries(file, leave_out):
            name = Path(str(entry["file_name"])).name
            places = (root / str(entry["file_name"]), file.parent / name, file.parent / "images" / name)
            path = next((place for place in places if place.is_file()), by_name.get(name, places[0]))
            if not path.is_file():
                refused.append(Refusal(file=str(entry["file_name"]), reason=f"listed in {file.name}, but not there"))
            else:
                size = int(entry["height"]), int(entry["width"])
                found.append(Found(image=path, labels=_labeller(objects, size), split_key=f"{file.name}/{name}"))
    return found, refused


def _entries(file: Path, leave_out: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        listed = content["annotations"]
        # LIVECell's published files contain a mapping of id → annotation instead of a list
        annotations = list(listed.values()) if isinstance(listed, dict) else listed
        categories = content.get("categories", []) if leave_out else []
        unwanted = {c["id"] for c in categories if {c.get("name"), c.get("supercategory")} & set(leave_out)}
        objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            if annotation.get("category_id") not in unwanted:
                objects[annotation["image_id"]].append(annotation)
        yield from ((entry, objects[entry["id"]]) for entry in content["images"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a COCO file: {first_line(error, named=True)}") from error


def _labeller(objects: list[dict[str, Any]], size: tuple[int, int]) -> Labeller:
    def labels() -> tuple[Labels, list[str]]:
        masks = [draw(entry["segmentation"], size) for entry in objects if not entry.get("iscrowd")]
        crowds = sum(1 for entry in objects if entry.get("iscrowd"))
        notes = [f"{crowds} crowd region(s) left out"] if crowds else []
        if not masks:
            return np.zeros(size, dtype=np.int32), notes
        merged, overlap = merge_masks(masks)
        return merged, notes + overlap

    return labels


def draw(segmentation: Any, size: tuple[int, int]) -> Mask:
    """Boolean mask (H, W) of one COCO segmentation: a list of polygons [x0, y0, x1, …], or RLE."""
    if isinstance(segmentation, dict):
        return decode_rle(segmentation)
    canvas = np.zeros(size, dtype=np.uint8)
    for polygon in segmentation:
        # COCO coordinates are pixel corners, cv2's are pixel centres: half a pixel apart. 4 fractional bits.
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) - 0.5  # [n, 2] x, y
        cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], 1, shift=4)
    return canvas > 0


def decode_rle(rle: dict[str, Any]) -> Mask:
    """Mask (H, W) of run lengths in column order, given as a list or in COCO's compressed text.

    Raises:
        DataError: runs that do not cover the image.
    """
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    runs = _decompress(counts) if isinstance(counts, (str, bytes)) else [int(run) for run in counts]
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise DataError(f"RLE of {sum(runs)} pixels for an image of {height}×{width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompress(text: str | bytes) -> list[int]:
    """COCO's RLE text: 5 bits a character (offset 48), 6th bit continues; from the third run on, differences."""
    data = text.encode() if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        code = byte - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
