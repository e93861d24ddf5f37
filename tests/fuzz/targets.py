"""What is fed with damaged files, and the whole files that are damaged."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mutations
import numpy as np
import tifffile
import torch
from mutations import Random

from dinocell import cli, curation
from dinocell.core.errors import DinoCellError
from dinocell.datasets.labelled import open_dataset
from dinocell.datasets.prepare import convert
from dinocell.datasets.prepare.cellpose import read_seg_masks
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.synthetic.sample import make_image
from dinocell.evaluation.reading import read_label_image
from dinocell.images.gray import channels
from dinocell.images.listing import SUFFIXES
from dinocell.images.read import read_series
from dinocell.labels import files
from dinocell.models import ModelCard, load_backbone, load_model_folder, save_backbone, save_model
from dinocell.models.decoder import DecoderConfig
from dinocell.models.network import SegmentationModel
from dinocell.models.vit.vision_transformer import VisionTransformer, ViTConfig

IMAGES = (*SUFFIXES, ".zarr")
MAX_SEED_BYTES = 2**21
TRANSLATED = re.compile(r"^(?:.*: )?[A-Za-z]*(?:Error|Exception|Interrupt|Warning|Exit)\b: ")
"""How a failure looks whose cause nobody put into words."""


class Finding(Exception):
    """Something that must not happen."""


def write_corpus(folder: Path) -> None:
    """Small whole files in every format that is written without an extra library."""
    folder.mkdir(parents=True, exist_ok=True)
    gray, labels = make_image(1, 96, "fluorescence")
    deep = gray.astype(np.uint16) * (1 if gray.dtype == np.uint16 else 200)
    low = (deep >> 8).astype(np.uint8)
    for suffix in (".png", ".jpg", ".bmp"):
        cv2.imwrite(str(folder / f"rgb{suffix}"), np.stack([low, low // 2, 255 - low], axis=-1))
        cv2.imwrite(str(folder / f"gray{suffix}"), low)
    cv2.imwrite(str(folder / "deep.png"), deep)
    stack = np.stack([deep, deep[::-1], deep // 2, deep // 3, deep // 5, deep // 7])
    tifffile.imwrite(folder / "plain.tif", deep)
    tifffile.imwrite(folder / "zlib.tif", deep, compression="zlib", tile=(32, 32))
    tifffile.imwrite(folder / "lzw.tif", low, compression="lzw", predictor=True)
    tifffile.imwrite(folder / "jpeg.tif", low, compression="jpeg", tile=(32, 32))
    tifffile.imwrite(folder / "float.tif", deep.astype(np.float32) - 5)
    tifffile.imwrite(folder / "palette.tif", low, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    tifffile.imwrite(folder / "stack.ome.tif", stack.reshape(3, 2, 96, 96), metadata={"axes": "ZCYX"}, ome=True)
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True, metadata={"axes": "TYX", "unit": "um"})
    tifffile.imwrite(folder / "big.btf", stack[:2], bigtiff=True, compression="zstd")
    tifffile.imwrite(folder / "pyramid.ome.tif", np.stack([low] * 3, axis=-1), photometric="rgb", ome=True)
    np.save(folder / "gray.npy", deep)
    np.save(folder / "stack.npy", stack.astype(np.float32))
    files.write_labels(folder / "gray_labels.tif", labels, 0.5)
    np.save(folder / "cells_seg.npy", {"masks": labels, "outlines": labels * 0, "est_diam": 12.5}, allow_pickle=True)  # type: ignore[arg-type]


def write_models(folder: Path) -> None:
    """A tiny segmentation model and a backbone."""
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1))
    decoder = DecoderConfig(neck_width=16)
    save_model(folder / "model", SegmentationModel(backbone, decoder, 3, 64, 64), ModelCard(crop_size=64))
    save_backbone(folder / "backbone", backbone, {})
    torch.save(backbone.state_dict(), folder / "backbone.pth")


class Bench:
    """Seeds, models and a scratch folder; `run(name, number)` is one case, the same whenever it is run."""

    def __init__(self, seeds: list[Path], models: Path, scratch: Path, seed: int) -> None:
        self.models, self.scratch, self.seed = models, scratch, seed
        every = sorted(
            p for folder in seeds for p in folder.rglob("*") if not any(q.suffix == ".zarr" for q in p.parents)
        )
        self.files = [
            path
            for path in every
            if path.suffix == ".zarr" or (path.is_file() and 0 < path.stat().st_size < MAX_SEED_BYTES)
        ]
        self.images = [path for path in self.files if path.suffix in IMAGES and not path.name.endswith("_seg.npy")]

    def run(self, target: str, number: int) -> str:
        """What became of a case: "read" or the refusal, in one line.

        Raises:
            Finding, or whatever else the code under test let through.
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        random = np.random.default_rng([self.seed, number])
        try:
            TARGETS[target](self, random)
        except DinoCellError as error:
            return check_words(str(error))
        return "read"

    def damaged(self, random: Random, pool: list[Path], folder: Path, stem: str = "mutant") -> Path:
        """A damaged copy of one of the files; one in eight gets the name of another format."""
        source = pool[int(random.integers(len(pool)))]
        others = [path for path in self.files if path.is_file()]
        other = others[int(random.integers(len(others)))].read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            copy = folder / f"{stem}{source.suffix}"
            shutil.copytree(source, copy)
            mutations.mutate_folder(copy, random, other)
            return copy
        ending = "".join(source.suffixes[-2:]) if ".ome" in source.suffixes else source.suffix
        if random.random() < 0.125:
            ending = str(random.choice(mutations.SUFFIXES))
        copy = folder / f"{stem}{ending}"
        copy.write_bytes(mutations.mutate(source.read_bytes(), random, other))
        return copy


def check_words(message: str) -> str:
    """The message, if a person would call it one clear line.

    Raises:
        Finding: several lines, nothing said, or the name of an exception in place of a reason.
    """
    if "\n" in message.strip() or not message.strip() or len(message) > 600:
        raise Finding(f"not one clear line: {message!r}")
    return message


def read(bench: Bench, random: Random) -> None:
    """Every image of a file, its planes and its gray picture."""
    path = bench.damaged(random, bench.images, bench.scratch)
    with _names(path):
        for image in read_series(path):
            channels.to_gray(image)
            for _name, _plane in channels.planes(image):
                pass


def labels(bench: Bench, random: Random) -> None:
    """Label images of any tool."""
    pool = bench.files if random.random() < 0.3 else [path for path in bench.files if "label" in path.name.lower()]
    path = bench.damaged(random, pool or bench.files, bench.scratch)
    with _names(path):
        files.read_labels(path)


def seg_npy(bench: Bench, random: Random) -> None:
    """Cellpose's pickled results, by both of their readers."""
    path = bench.damaged(random, [p for p in bench.files if p.name.endswith("_seg.npy")], bench.scratch)
    path = path.rename(path.with_name("mutant_seg.npy"))
    for reader in (read_seg_masks, read_label_image):
        with contextlib.suppress(DinoCellError), _names(path):
            reader(path)


@contextlib.contextmanager
def _names(path: Path) -> Any:
    """Refusals must say which file."""
    try:
        yield
    except DinoCellError as error:
        if path.name not in str(error):
            raise Finding(f"does not name the file: {error}") from error
        raise


def segment(bench: Bench, random: Random) -> None:
    """`dinocell segment` on a folder of one to three damaged images."""
    folder, out = bench.scratch / "in", bench.scratch / "out"
    for number in range(int(random.integers(1, 4))):
        bench.damaged(random, bench.images, folder, f"mutant{number}")
    words = ["segment", str(folder), "--out", str(out), "--model", str(bench.models / "model"), "--device", "cpu"]
    said = _command([*words, "--save", str(random.choice(("labels", "labels,csv", "overlay,geojson,rois")))])
    with contextlib.suppress(FileNotFoundError), (out / "summary.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            check_words(row["note"] or "none")
            if row["status"] == "failed" and TRANSLATED.match(row["note"]):
                raise Finding(f"a reason in no words: {row['note']}")
        return
    if "error:" not in said:
        raise Finding(f"neither a summary nor an error: {said}")


def _command(words: list[str]) -> str:
    """Standard error of a command that must end with 0, 1 or 2 and without a traceback."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            cli.main(words)
    except SystemExit as leave:
        if leave.code not in (0, 1, 2) or "Traceback" in said.getvalue():
            raise Finding(f"exit code {leave.code}: {said.getvalue()[-500:]}") from None
    return said.getvalue()


def curate(bench: Bench, random: Random) -> None:
    """Curation of a folder of damaged images."""
    folder = bench.scratch / "in"
    for number in range(int(random.integers(1, 4))):
        bench.damaged(random, bench.images, folder, f"mutant{number}")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        curation.run(curation.CurateConfig(sources=(str(folder),), out=str(bench.scratch / "out"), size=64, workers=1))
    tables = (bench.scratch / "out" / name for name in ("manifest.csv", "rejected.csv"))
    for row in (row for table in tables for row in csv.DictReader(table.read_text("utf-8").splitlines())):
        if TRANSLATED.match(row.get("detail") or ""):
            raise Finding(f"a reason in no words: {row['detail']}")


def prepare(bench: Bench, random: Random) -> None:
    """Conversion of a labelled source, in a layout at random, with one of its files damaged."""
    root, name = bench.scratch / "src", str(random.choice(sorted(LAYOUTS)))
    gray, truth = make_image(int(random.integers(4)), 64, "phase")
    settings = LAYOUTS[name](root, gray, truth.astype(np.uint16))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    victim = files[int(random.integers(len(files)))]
    victim.write_bytes(mutations.mutate(victim.read_bytes(), random, files[0].read_bytes()))
    out = bench.scratch / "out"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        convert.prepare(PrepareConfig(src=str(root), out=str(out), **settings))
        for split in ("train", "val", "test"):
            open_dataset(out, split)


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array) if path.suffix == ".tif" else cv2.imwrite(str(path), array)


def _pairs(root: Path, gray: np.ndarray, truth: np.ndarray, binary: bool = False) -> dict[str, Any]:
    for stem in "ab":
        _write(root / "images" / f"{stem}.png", gray)
        _write(root / "masks" / f"{stem}.tif", (truth > 0).astype(np.uint8) * 255 if binary else truth)
    return {"layout": "binary" if binary else "pairs"}


def _binary(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return _pairs(root, gray, truth, binary=True)


def _cellpose(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    for stem in "ab":
        _write(root / f"{stem}.png", gray)
        np.save(root / f"{stem}_seg.npy", {"masks": truth}, allow_pickle=True)  # type: ignore[arg-type]
    return {"layout": "pairs", "mask_from": r"(?<!_masks)\.(png|tif)$", "mask_to": "_seg.npy"}


def _coco(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    _write(root / "images" / "a.png", gray)
    size = list(gray.shape)
    shapes: list[Any] = [[[1, 1, 20, 1, 20, 20, 1, 20]], {"size": size, "counts": [10, 50, gray.size - 60]}]
    objects = [{"id": n, "image_id": 1, "category_id": 1, "segmentation": one} for n, one in enumerate(shapes)]
    images = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": []}))
    return {"layout": "coco", "annotations": "**/*.json"}


def _dsb(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    _write(root / "a" / "images" / "a.png", gray)
    for number in (1, 2):
        _write(root / "a" / "masks" / f"{number}.png", (truth == number).astype(np.uint8) * 255)
    return {"layout": "dsb2018"}


def _ctc(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    _write(root / "01" / "t000.tif", gray)
    _write(root / "01_GT" / "SEG" / "man_seg000.tif", truth)
    return {"layout": "ctc"}


def _rois(root: Path, gray: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    _write(root / "a.png", gray)
    (root / "a.json").write_text(json.dumps([{"points": [[1, 1], [20, 1], [20, 20], [1, 20]]}]))
    return {"layout": "rois", "mask_from": r"\.png$", "mask_to": ".json"}


LAYOUTS: dict[str, Callable[[Path, np.ndarray, np.ndarray], dict[str, Any]]] = {
    "pairs": _pairs,
    "binary": _binary,
    "cellpose": _cellpose,
    "coco": _coco,
    "dsb2018": _dsb,
    "ctc": _ctc,
    "rois": _rois,
}


def weights(bench: Bench, random: Random) -> None:
    """A model folder, a backbone and a .pth of which one file is damaged."""
    copy = bench.scratch / "models"
    shutil.copytree(bench.models, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    victim = files[int(random.integers(len(files)))]
    victim.write_bytes(mutations.mutate(victim.read_bytes(), random, files[0].read_bytes()))
    with contextlib.redirect_stdout(io.StringIO()):
        if victim.parent.name == "model":
            load_model_folder(victim.parent)
        else:
            load_backbone(victim.with_suffix(".safetensors") if victim.suffix == ".json" else victim)


TARGETS: dict[str, Callable[[Bench, Random], None]] = {
    "read": read,
    "labels": labels,
    "seg_npy": seg_npy,
    "segment": segment,
    "curate": curate,
    "prepare": prepare,
    "weights": weights,
}
