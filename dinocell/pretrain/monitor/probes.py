"""Probes of the teacher's features during training: nearest neighbours and a linear probe.

Continuing DINOv2 can wreck its features within thousands of images while the loss still falls, so features are put to
small tests that need no training: does a crop's CLS token find crops of the same source (a sub-folder of the data), and
do patch tokens distinguish cells from background on a few labelled images?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dinocell.core.device import autocast
from dinocell.core.errors import ConfigError, DataError
from dinocell.datasets.labelled import LabelledItem, open_dataset
from dinocell.images.geometry.resize import resize_image
from dinocell.labels.files import read_labels
from dinocell.models import VisionTransformer
from dinocell.pretrain.config import PretrainConfig
from dinocell.pretrain.data.augment import UInt8Array
from dinocell.pretrain.data.crops import read_gray
from dinocell.pretrain.method.student_teacher import network_input

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of a neighbour's vote, as DINO's kNN evaluation
RIDGE = 1e-2  # share of the mean variance added to the covariance of the linear probe
MIN_PATCHES = 20  # of each class, among the references and among the queries


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Images and what their features should reveal; the first `references` are looked up, the rest asked.

    Attributes:
        images: uint8 (H, W), all of one size.
        classes: (n,) class of each image, or (n, h, w) class of each of its patches, −1 where it is undecided.
        references: number of images that serve as references.
    """

    images: list[UInt8Array]
    classes: npt.NDArray[np.int64]
    references: int


class Probes:
    """The probes that a run's data allow, all on fixed images."""

    def __init__(self, config: PretrainConfig, paths: Sequence[str]) -> None:
        self.sources = source_probe(config, paths) if config.monitor.every else None
        self.cells = cell_probe(config) if config.monitor.every and config.monitor.labelled else None

    @property
    def names(self) -> list[str]:
        """Names of the values that `measure` returns."""
        return ["knn_source"] * (self.sources is not None) + ["knn_patch", "probe_patch"] * (self.cells is not None)

    @torch.no_grad()
    def measure(self, backbone: VisionTransformer, dtype: torch.dtype) -> dict[str, float]:
        """Balanced accuracies in [0, 1] of the backbone's features.

        `knn_source`: class of a crop's source by its CLS token's nearest neighbours; `knn_patch` and `probe_patch`:
        cell or background of a patch by nearest neighbours and by a linear probe. All chance levels are 1 / classes.
        """
        was_training = backbone.training
        backbone.eval()
        values = {}
        if self.sources is not None:
            cls, _ = features(backbone, self.sources.images, dtype)
            known, split = torch.from_numpy(self.sources.classes).to(cls.device), self.sources.references
            found = nearest_neighbours(cls[:split], known[:split], cls[split:])
            values["knn_source"] = balanced_accuracy(found, known[split:])
        if self.cells is not None:
            _, patches = features(backbone, self.cells.images, dtype)  # [n, N, D]
            values |= _patch_values(patches, self.cells)
        backbone.train(was_training)
        return values


def _patch_values(patches: Tensor, probe: Probe) -> dict[str, float]:
    classes = torch.from_numpy(probe.classes).to(patches.device).flatten(1)  # [n, N]
    reference, query = patches[: probe.references].flatten(0, 1), patches[probe.references :].flatten(0, 1)
    known, wanted = classes[: probe.references].flatten(), classes[probe.references :].flatten()
    reference, known = reference[known >= 0], known[known >= 0]
    query, wanted = query[wanted >= 0], wanted[wanted >= 0]
    return {
        "knn_patch": balanced_accuracy(nearest_neighbours(reference, known, query), wanted),
        "probe_patch": balanced_accuracy(linear_probe(reference, known, query), wanted),
    }


def features(backbone: VisionTransformer, images: list[UInt8Array], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """CLS tokens [n, D] and patch tokens [n, N, D], float32, of gray uint8 images of one size."""
    device = next(backbone.parameters()).device
    cls, patches = [], []
    for first in range(0, len(images), 8):
        crops = torch.from_numpy(np.stack(images[first : first + 8]))[:, None].to(device)
        with autocast(device, dtype):
            output = backbone.forward_features(network_input(crops, backbone.in_channels))
        cls.append(output["x_norm_clstoken"].float())
        patches.append(output["x_norm_patchtokens"].float())
    return torch.cat(cls), torch.cat(patches)


def nearest_neighbours(reference: Tensor, classes: Tensor, query: Tensor) -> Tensor:
    """Class [m] of each query by the votes of its nearest references, weighted as in DINO's kNN evaluation.

    Every class's votes are divided by its number of references, so that a common class does not win by number.

    Args:
        reference: [n, D] features. classes: [n] their classes, 0 … c − 1. query: [m, D] features.
    """
    reference, query = (torch.nn.functional.normalize(part - reference.mean(0), dim=1) for part in (reference, query))
    count = int(classes.max()) + 1
    neighbours = min(NEIGHBOURS, max(len(reference) // (2 * count), 1))  # fewer than a class has
    prior = torch.bincount(classes, minlength=count).clamp_min(1).float()
    found = []
    for part in query.split(4096):
        similarity, index = (part @ reference.T).topk(neighbours, dim=1)  # [b, k]
        votes = torch.zeros(len(part), count, device=part.device)
        votes.scatter_add_(1, classes[index], (similarity / TEMPERATURE).exp())
        found.append((votes / prior).argmax(dim=1))
    return torch.cat(found)


def linear_probe(reference: Tensor, classes: Tensor, query: Tensor) -> Tensor:
    """Class [m] of each query by linear discriminant analysis (shrunk covariance, equal priors): a closed form."""
    count = int(classes.max()) + 1
    reference, query = reference.double(), query.double()
    means = torch.stack([reference[classes == k].mean(0) for k in range(count)])  # [c, D]
    centred = reference - means[classes]
    covariance = centred.T @ centred / len(reference)
    ridge = RIDGE * covariance.diagonal().mean() + 1e-12
    covariance += ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    directions = torch.linalg.solve(covariance, means.T)  # [D, c]
    offset = -0.5 * (means * directions.T).sum(dim=1)
    return (query @ directions + offset).argmax(dim=1)


def balanced_accuracy(found: Tensor, wanted: Tensor) -> float:
    """Mean over the classes present of the share of their members that were found."""
    present = wanted.unique()
    return float(torch.stack([(found[wanted == k] == k).float().mean() for k in present]).mean())


def source_probe(config: PretrainConfig, paths: Sequence[str]) -> Probe | None:
    """Central crops of images from up to 10 sources (folders), or None where the data have only one."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(str(Path(path).parent), []).append(path)
    groups = {name: files for name, files in groups.items() if len(files) >= 4}
    chosen = sorted(groups, key=lambda name: (-len(groups[name]), name))[:10]
    if len(chosen) < 2:
        return None
    each = max(config.monitor.images // len(chosen), 4)
    halves: tuple[list[tuple[UInt8Array, int]], list[tuple[UInt8Array, int]]] = ([], [])
    for number, name in enumerate(sorted(chosen)):
        files = groups[name]
        for turn, index in enumerate(np.linspace(0, len(files) - 1, min(each, len(files))).astype(int)):
            try:
                gray = read_gray(files[index], config.data.percentile_low, config.data.percentile_high)
            except DataError:
                continue
            halves[turn % 2].append((central(gray, config.augment.global_size), number))
    rows = halves[0] + halves[1]
    if not all(halves):
        return None
    return Probe(
        images=[image for image, _ in rows],
        classes=np.array([number for _, number in rows], np.int64),
        references=len(halves[0]),
    )


def cell_probe(config: PretrainConfig) -> Probe:
    """Crops of labelled images with the class of each patch; references from train, queries from val.

    Raises:
        ConfigError: too few patches of cells or of background.
    """
    rows: list[tuple[UInt8Array, npt.NDArray[np.int64]]] = []
    counts = []
    for split in ("train", "val"):
        items = [item for root in config.monitor.labelled for item in open_dataset(root, split, seed=config.seed)]
        chosen = np.linspace(0, len(items) - 1, min(config.monitor.images // 2, len(items))).astype(int)
        part = [_labelled_crop(config, items[index]) for index in chosen]
        found = np.bincount(np.concatenate([classes.ravel() for _, classes in part] or [np.zeros(0, np.int64)]) + 1)
        found = np.pad(found, (0, max(3 - len(found), 0)))
        if min(found[1], found[2]) < MIN_PATCHES:
            raise ConfigError(
                f"monitor.labelled: the {split} split shows {found[2]} patches of cells and {found[1]} of background; "
                f"the probe needs {MIN_PATCHES} of each: give more or other labelled images"
            )
        rows += part
        counts.append(len(part))
    return Probe(
        images=[image for image, _ in rows],
        classes=np.stack([classes for _, classes in rows]),
        references=counts[0],
    )


def _labelled_crop(config: PretrainConfig, item: LabelledItem) -> tuple[UInt8Array, npt.NDArray[np.int64]]:
    """A crop around the labelled cells, and for each patch 1 = mostly cell, 0 = no cell, −1 = neither."""
    side, patch = config.augment.global_size, config.model.patch_size
    gray = read_gray(str(item.image), config.data.percentile_low, config.data.percentile_high)
    cells = (read_labels(item.mask) > 0).astype(np.float32)
    if cells.shape != gray.shape:
        raise DataError(f"{item.mask}: is {cells.shape}, its image {gray.shape}; they must be of one size")
    at = _busiest(cells, side)
    crop, inside = central(gray, side, at), central(cells, side, at)
    share = resize_image(inside, (side // patch, side // patch))
    classes = np.where(share > 0.5, 1, np.where(share == 0, 0, -1))
    return crop, classes.astype(np.int64)


def _busiest(cells: npt.NDArray[np.float32], side: int) -> tuple[int, int]:
    """Corner of the window whose share of cells is nearest to one half."""
    height, width = (max(length - side, 0) for length in cells.shape)
    if height == width == 0:
        return 0, 0
    total = np.pad(cells.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    ys, xs = np.arange(0, height + 1, 8), np.arange(0, width + 1, 8)
    bottom, right = np.minimum(ys + side, cells.shape[0]), np.minimum(xs + side, cells.shape[1])
    inside = total[np.ix_(bottom, right)] - total[np.ix_(ys, right)] - total[np.ix_(bottom, xs)] + total[np.ix_(ys, xs)]
    best = int(np.abs(inside / (side * side) - 0.5).argmin())
    return int(ys[best // len(xs)]), int(xs[best % len(xs)])


def central(image: npt.NDArray[Any], side: int, at: tuple[int, int] | None = None) -> npt.NDArray[Any]:
    """The square of this side at a corner (default: in the middle); an image that is smaller is mirrored outwards."""
    pad = [max(side - length, 0) for length in image.shape]
    if any(pad):
        image = np.pad(image, [(0, pad[0]), (0, pad[1])], mode="reflect" if min(image.shape) > max(pad) else "edge")
    y, x = at if at is not None else tuple((length - side) // 2 for length in image.shape)
    return np.ascontiguousarray(image[y : y + side, x : x + side])
