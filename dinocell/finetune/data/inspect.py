"""`dinocell inspect`: one page that shows a labelled dataset and the crops that training would see of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import SPLITS, DatasetInfo, LabelledItem, open_dataset
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.data.checks import ImageFacts, inspect_store, problems, summary
from dinocell.finetune.data.crops import CropDataset, Sample
from dinocell.finetune.data.image_store import ImageStore
from dinocell.finetune.data.sampler import SampleOrder, sample_rng
from dinocell.finetune.validate.validator import evenly
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.objectives import Objective, build_objective
from dinocell.report.colours import flow_colours
from dinocell.report.html import Report
from dinocell.report.overlays import overlay, panel

SHOWN_IMAGES = 8
SHOWN_CROPS = 6
CROPS_PER_ROW = 2
LARGEST_FIGURE = 560  # px; larger ones only make the page heavy
HEADER = (
    "dataset",
    "train · val · test",
    "size (px)",
    "files",
    "cells",
    "diameter (px)",
    "labelled",
    "empty",
    "annotated",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Training images of one dataset: all of them, and the facts of those looked at.

    `numbers` are the images looked at, in the order of `facts`; `counts` the images of train, val and test.
    """

    info: DatasetInfo
    counts: tuple[int, ...]
    store: ImageStore
    facts: tuple[ImageFacts, ...]
    numbers: tuple[int, ...]

    @property
    def diameters(self) -> NDArray[np.float64]:
        """Diameters of all cells looked at, px at the training scale."""
        return np.concatenate([f.diameters for f in self.facts]) if self.facts else np.zeros(0)


def inspect_datasets(config: FinetuneConfig, out: Path) -> Path:
    """Look at `data.check_images` training images of each dataset of `data.root` and write the page.

    Returns:
        The page's path.

    Raises:
        ConfigError: data.root is empty or no dataset.
        DataError: no image of any dataset can be used.
    """
    parts = open_parts(config)
    if not any(part.facts for part in parts):
        reason = next((r for part in parts for r in part.store.bad.values()), "no image was found")
        raise DataError(f"none of the images can be used; the first reason: {reason}")
    for line in summary([f for part in parts for f in part.facts]):
        log.info(line)
    found = [sentence for part in parts for sentence in part_problems(part, config)]
    for sentence in found:
        log.warning(sentence)
    # What cannot be read was reported when it was met.
    found += [f"{part.info.name}: {reason}" for part in parts for reason in part.store.bad.values()]
    names = ", ".join(part.info.name for part in parts)
    objective = build_objective(config.objective)
    report = Report(f"Inspection of {names}", f"crops of {config.crop_size} px · objective {objective.name}")
    _overview(report, parts, found)
    _distributions(report, parts, config)
    shown = [part for part in parts if part.facts]
    for part in shown:
        _images(report, part)
        _crops(report, part, config, objective)
    if objective.vector_maps:
        report.gallery([(flow_wheel(160), "the colour of each direction")])
    path = report.write(out)
    log.info(f"written: {path}")
    return path


def open_parts(config: FinetuneConfig) -> list[Part]:
    """Open one part per dataset of `data.root`, in the order they are found."""
    if not config.data.root:
        raise ConfigError("inspect: no dataset given; name a folder with images/ and masks/ inside")
    items: dict[DatasetInfo, dict[str, list[LabelledItem]]] = defaultdict(lambda: defaultdict(list))
    for root in config.data.root:
        for split in SPLITS:
            try:
                found = open_dataset(root, split, seed=config.seed)
            except ConfigError:
                if split == "train":
                    raise
                continue  # a dataset may have no test split
            for item in found:
                items[item.dataset][split].append(item)
    parts = []
    for info, splits in items.items():
        store = ImageStore(splits["train"], config, log.warning)
        facts = inspect_store(store, config.data.check_images or len(store))
        looked_at = [i for i in evenly(len(store), config.data.check_images) if i not in store.bad]
        counts = tuple(len(splits[split]) for split in SPLITS)
        parts.append(Part(info=info, counts=counts, store=store, facts=tuple(facts), numbers=tuple(looked_at)))
    return parts


def part_problems(part: Part, config: FinetuneConfig) -> list[str]:
    """Say what looks wrong with one dataset, as before the first step of a training."""
    return problems(
        part.facts,
        crop_size=config.crop_size,
        pixels_per_patch=config.backbone.patch_size * config.crop_size / config.network_size,
        instances=build_objective(config.objective).has_instances,
    )


def _overview(report: Report, parts: Sequence[Part], found: Sequence[str]) -> None:
    facts = [f for part in parts for f in part.facts]
    diameters = np.concatenate([part.diameters for part in parts])
    report.figures(
        {
            "training images": sum(part.counts[0] for part in parts),
            "cells in the images looked at": sum(f.cells for f in facts),
            "median cell diameter (px)": f"{np.median(diameters):.0f}" if len(diameters) else "–",
            "pixels labelled": f"{np.mean([f.labelled for f in facts]):.0%}",
            "things to look into": len(found),
        }
    )
    report.heading("What looks wrong")
    if not found:
        report.text(
            f"Nothing, in the {len(facts)} images looked at: masks number single cells, fit their images, fit the "
            "crops, and nothing hints at missing labels. The figures below show it to your own eyes."
        )
    for sentence in found:
        report.text(f"⚠ {sentence}.")
    report.heading("Datasets" if len(parts) > 1 else "Dataset")
    report.table([_row(part) for part in parts], HEADER)
    report.text(
        "Of the training images looked at. Cells per image: fewest, median, most. Diameters: 5, 50 and 95 % of cells "
        "are smaller. Empty images are used as background."
    )


def _row(part: Part) -> list[object]:
    counts = " · ".join(str(n) for n in part.counts)
    if not part.facts:
        return [part.info.name, counts, *["–"] * (len(HEADER) - 2)]
    heights, widths = zip(*(f.shape for f in part.facts), strict=True)
    sizes = f"{min(widths)} × {min(heights)}"
    if (min(widths), min(heights)) != (max(widths), max(heights)):
        sizes += f" to {max(widths)} × {max(heights)}"
    cells = [f.cells for f in part.facts]
    spread = np.percentile(part.diameters, [5, 50, 95]) if len(part.diameters) else None
    first = read_image(part.store.items[part.numbers[0]].image)
    return [
        part.info.name,
        counts,
        sizes,
        f"{first.array.dtype} {first.axes}",
        f"{min(cells)} – {np.median(cells):.0f} – {max(cells)}",
        "–" if spread is None else " – ".join(f"{d:.0f}" for d in spread),
        f"{np.mean([f.labelled for f in part.facts]):.0%}",
        cells.count(0),
        "fully" if part.info.fully_annotated else "in part",
    ]


def _distributions(report: Report, parts: Sequence[Part], config: FinetuneConfig) -> None:
    report.heading("Distributions")
    named = {part.info.name: part for part in parts if part.facts}
    patch = config.backbone.patch_size * config.crop_size / config.network_size
    marks = {f"patch {patch:.3g}": patch, f"crop {config.crop_size}": float(config.crop_size)}
    diameters = {name: part.diameters.tolist() for name, part in named.items()}
    if any(diameters.values()):
        report.histogram(
            diameters,
            "Cell diameter",
            "diameter of a circle of equal area (px)",
            "Half of the cells should be larger than a patch of the backbone, and nearly all smaller than a crop.",
            marks=marks,
        )
    for title, xlabel, values in (
        ("Cells per image", "cells", {n: [float(f.cells) for f in p.facts] for n, p in named.items()}),
        (
            "Labelled part of the image",
            "pixels with a label (%)",
            {n: [100 * f.labelled for f in p.facts] for n, p in named.items()},
        ),
    ):
        if max(len(v) for v in values.values()) >= 5:  # fewer are read off the captions of the images
            report.histogram(values, title, xlabel)


def _images(report: Report, part: Part) -> None:
    report.heading(part.info.name)
    report.heading("Images and masks", 3)
    thumbnails: list[tuple[bytes, str]] = []
    for position in evenly(len(part.facts), SHOWN_IMAGES):
        facts, item = part.facts[position], part.store.items[part.numbers[position]]
        prepared = part.store.get(part.numbers[position])
        assert prepared is not None
        thumbnail = _jpeg(overlay(to_gray(read_image(item.image)), prepared.truth, fill=0.12))
        size, cells = (
            f"{facts.shape[1]} × {facts.shape[0]} px",
            "1 cell" if facts.cells == 1 else f"{facts.cells} cells",
        )
        caption = f"{item.stem}: {size}, {cells}, {facts.labelled:.0%} labelled"
        thumbnails.append((thumbnail, caption))
    report.gallery(thumbnails, "Each cell has an outline in its own colour; outlines must be on the edges of cells.")


def _crops(report: Report, part: Part, config: FinetuneConfig, objective: Objective) -> None:
    report.heading("Crops as training sees them", 3)
    order = SampleOrder([0] * len(part.store), "proportional", config.seed)
    dataset = CropDataset(part.store, order, objective, config)
    report.text(_legend(config, objective, part))
    rows: list[tuple[str, NDArray[np.generic]]] = []
    samples = []
    for k in range(SHOWN_CROPS):
        prepared = part.store.get(part.numbers[k % len(part.numbers)])
        assert prepared is not None
        samples.append(dataset.cut(prepared, sample_rng(config.seed, k)))
    weighted = any(float(sample.weight.min()) < 1 for sample in samples)
    for sample in samples:
        rows += crop_figures(sample, objective, weighted).items()
    columns = CROPS_PER_ROW * len(rows) // SHOWN_CROPS
    crops = panel([figure for _, figure in rows], [title for title, _ in rows], columns=columns, height=190)
    report.image(_jpeg(crops, crops.shape[1]))


def _legend(config: FinetuneConfig, objective: Objective, part: Part) -> str:
    crops = f"Random crops of {config.crop_size} px, augmented as in training, with the maps the network is to predict"
    if part.facts[0].complete and not any(item.ignore for item in part.store.items):
        weights = "Every pixel has the same weight in the loss."
    else:
        weights = "Loss weight: white 1, dark where nothing is labelled, black 0 where it is ignored."
    wheel = " The colour of a flow is its direction, as in the wheel below." if objective.vector_maps else ""
    return f"{crops}: {objective.describe()}.{wheel} {weights}"


def crop_figures(sample: Sample, objective: Objective, weighted: bool) -> Mapping[str, NDArray[np.generic]]:
    """Draw the crop, its targets (flows as colours), and its loss weights where they differ, by title."""
    figures: dict[str, NDArray[np.generic]] = {"crop": sample.image}
    for title, values in objective.figures(sample.target).items():
        figures[title] = flow_colours(values) if values.ndim == 3 else _gray(values)
    if weighted:
        figures["loss weight"] = _gray(sample.weight)
    return figures


def _jpeg(figure: NDArray[np.uint8], largest: int = LARGEST_FIGURE) -> bytes:
    """Encode a figure, at most `largest` px wide and high, as JPEG: a tenth of its size as PNG."""
    scale = min(1.0, largest / max(figure.shape[:2]))
    size = (max(1, round(figure.shape[1] * scale)), max(1, round(figure.shape[0] * scale)))
    ok, encoded = cv2.imencode(".jpg", cv2.resize(figure[..., ::-1], size, interpolation=cv2.INTER_AREA))
    assert ok
    return bytes(encoded)


def _gray(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show 0 to 1 as black to white RGB, without stretching."""
    level = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=2)  # [H, W, 3]


def flow_wheel(side: int) -> NDArray[np.uint8]:
    """Draw the colour of every direction: each pixel of a disk is coloured as a flow that points outwards there."""
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / (side / 2)
    radius = np.hypot(y, x)
    wheel = flow_colours(np.stack([y, x]).astype(np.float32) / np.maximum(radius, 1e-6).astype(np.float32))
    wheel[radius > 0.97] = 255
    return wheel
