"""Draw the pictures of README.md (`cells`) and docs/segment.md: real images with the outlines that a model gives.

    python docs/pictures.py --data DATA [--model cells] [--out docs/images] [--only segment_bad]

DATA holds the images in `unlabelled/SOURCE/` and `labelled/SET/test/images/`; README and docs/segment.md name the
sources and their licences. Each image is segmented whole, as `dinocell segment` does it, and a square of it is shown.
Prints one line an image: cells, and what the command would have said. What is a good example, the eye decides: see
`FIGURES`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinocell.report.overlays import overlay, panel, to_rgb
from dinocell.segmentation import Segmenter

SHOWN = 400
TILE = 300
COLUMNS = 4
COLOURS = 128
"""Of a PNG: a palette makes it three times smaller."""
BARE_ABOVE = "cells"
"""The figure that shows the images without outlines, too, in a row of their own."""

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One image of a figure: file under DATA, what it shows, upper left corner and side of the square shown, in px."""

    file: str
    says: str
    corner: tuple[int, int] = (0, 0)
    side: int = SHOWN


EMBL, NOTEBOOKS = "unlabelled/embl_training", "unlabelled/bioimage_notebooks"
PROFILER, OMNIPOSE = "unlabelled/cellprofiler_examples", "unlabelled/bacteria_omnipose"
LABELLED = "labelled/{}/test/images/{}"
FIGURES: dict[str, list[Tile]] = {
    "cells": [
        Tile(LABELLED.format("dsb2018_nuclei", "5f9d29d6388c700f.png"), "", (0, 0), 360),
        Tile(LABELLED.format("usiigaci_phase", "set02.png"), "", (120, 300), 360),
        Tile(LABELLED.format("yeast_phase_ncsu", "movie_b_000.png"), "", (5, 0), 230),
        Tile(LABELLED.format("mdck_zo1", "ko06.png"), "", (100, 100), 900),
    ],
    "segment_good": [
        Tile(f"{EMBL}/xy_16bit_calibrated__nuclei_various_shapes.tif", "nuclei (16 bit)"),
        Tile(f"{PROFILER}/human_ht29_d0.tif", "HT29 nuclei (8 bit)", (100, 0)),
        Tile("unlabelled/qpi_float32/pc3_00001.tif", "PC-3, phase (float)", (100, 100)),
        Tile(f"{OMNIPOSE}/ec_5I_t141xy5c1.tif", "E. coli, phase"),
        Tile(f"{NOTEBOOKS}/membranes_2d.tif", "membranes"),
        Tile("unlabelled/maicrobe_saureus/saureus_phase.tif", "S. aureus, phase", (100, 200)),
        Tile("unlabelled/smear_chula_rbc12/chula_180.jpg", "red cells (JPEG)"),
        Tile(f"{EMBL}/xy_8bit__PCNA.tif", "large nuclei"),
    ],
    "segment_bad": [
        Tile(f"{OMNIPOSE}/caulo_15.tif", "Caulobacter, phase"),
        Tile(f"{NOTEBOOKS}/embryos_grey.tif", "embryos, bright field", (0, 80)),
        Tile(f"{PROFILER}/drosophila_seq1_0000.tif", "wing disc (RGB)"),
        Tile(f"{EMBL}/xyc_16bit__hela-cells.tif", "HeLa (16-bit colour)", (60, 100)),
        Tile("unlabelled/smear_bccd/BloodImage_00205.jpg", "blood (JPEG)"),
        Tile(f"{NOTEBOOKS}/membrane_2d_timelapse.tif", "membranes (TYX)"),
        Tile(f"{PROFILER}/wound_healing_t0.jpg", "wound, phase (JPEG)", (500, 250)),
        Tile(f"{PROFILER}/worms_brightfield_WT_orig.png", "C. elegans", (200, 100)),
    ],
}


def main() -> None:
    """Draw the figures named, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds unlabelled/")
    parser.add_argument("--model", help="model folder or packaged name; default: the packaged model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--only", help=f"figures, out of {','.join(FIGURES)}")
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.model)
    for name in arguments.only.split(",") if arguments.only else FIGURES:
        tiles = FIGURES[name]
        bare, outlined = zip(*[draw(segmenter, arguments.data, tile) for tile in tiles], strict=True)
        shown = [*bare, *outlined] if name == BARE_ABOVE else outlined
        titles = [tile.says for tile in tiles] * (len(shown) // len(tiles))
        sheet = panel(shown, titles, columns=COLUMNS, height=TILE)
        path = arguments.out / f"{name}.png"
        Image.fromarray(sheet).quantize(COLOURS).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1024} kB")


def draw(segmenter: Segmenter, data: Path, tile: Tile) -> tuple[UInt8, UInt8]:
    """A square of one image, and the same with the outlines of its cells, each TILE px wide."""
    result = next(segmenter.segment_planes(data / tile.file))
    print(f"{tile.file}: {result.labels.max()} cells; {'; '.join(map(str, result.notes))}", flush=True)
    side = min(tile.side, *result.labels.shape)
    y, x = (min(start, length - side) for start, length in zip(tile.corner, result.labels.shape, strict=True))
    part = slice(y, y + side), slice(x, x + side)
    enlarging = cv2.INTER_AREA if side > TILE else cv2.INTER_CUBIC
    picture = cv2.resize(to_rgb(result.plane.display)[part], (TILE, TILE), interpolation=enlarging)
    labels = cv2.resize(result.labels[part].astype(np.int32), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    return picture, overlay(picture, labels, thickness=1)


if __name__ == "__main__":
    main()
