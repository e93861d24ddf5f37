"""`Segmenter`: a trained model, its preprocessing and its decoding, applied to images of any size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinocell.core import device as devices
from dinocell.core.arrays import Float32
from dinocell.core.errors import ConfigError
from dinocell.core.records import as_json
from dinocell.images.depth import choose_depth
from dinocell.images.gray.preprocess import preprocess_plane
from dinocell.images.gray.streamed import StreamedInput
from dinocell.images.planes import Image, InputPlane, Plane, count_planes, iter_planes, loaded, open_image
from dinocell.labels.cells import compact_dtype
from dinocell.models import ModelCard, load_model_folder
from dinocell.models.folder import VIEWS
from dinocell.models.packaged import find_model
from dinocell.objectives import build_objective
from dinocell.predict.large.regions import Source, WholeSource
from dinocell.predict.large.work_folder import Scratch
from dinocell.predict.placement import Placement
from dinocell.predict.runner import Runner, counted
from dinocell.predict.tokens import cell_embeddings
from dinocell.segmentation.diameter import MOST_WINDOWS, Estimate, estimate_diameter, told_scale
from dinocell.segmentation.large_image import segment_large
from dinocell.segmentation.notes import CONSTANT, Note, tell
from dinocell.segmentation.options import SegmentKwargs, SegmentOptions
from dinocell.segmentation.result import SegmentationResult

LARGE_PIXELS = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plane in the network: what decoding needs to know of it, without the network's input.

    Attributes:
        plane: the plane to segment.
        placement: how it meets the network.
        invalid: (H, W), pixels without a value, where no cells are reported; None if there are none.
        notes: what the user should know so far.
        kept: the network's input, where the embeddings need it again.
    """

    plane: InputPlane
    placement: Placement
    invalid: NDArray[np.bool_] | None
    notes: tuple[Note, ...]
    kept: Float32 | None = None


class Prepared(NamedTuple):
    """A job and the network's input (h, w), None where there is nothing to predict.

    The input belongs to whoever takes it from here, so that it is freed as soon as its windows have run.
    """

    job: Job
    z: Float32 | None


class Segmenter:
    """A model ready to segment images of any size.

    Args:
        model: a model folder or run folder, the name of a packaged model (None: the default one), or a network that
            maps [B, 1, crop, crop] to [B, K, crop, crop].
        card: needed only with a network, else read from the folder; for rescaling it records `training.diameter` (px)
            or `training.pixel_size` (µm).
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `float32` or `bfloat16`.
        batch_size: windows per forward; default 8 on a GPU, 1 on a CPU, where more are not faster.
        overlap: fewest pixels that two windows share; default: the card's.
        views: turned and mirrored views of each window whose maps are averaged (test-time augmentation): 1, 2, 4 or 8;
            the network takes that many times as long. Default: the card's.

    Raises:
        ConfigError: no such folder, a device that cannot be used, or another number of views.
        CheckpointError: damaged weights.
    """

    large_pixels: int = LARGE_PIXELS

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | None = None,
        card: ModelCard | None = None,
        *,
        device: str = "auto",
        precision: devices.Precision = "auto",
        batch_size: int | None = None,
        overlap: int | None = None,
        views: int | None = None,
    ) -> None:
        where, self.device_reason = devices.choose_device(device)
        dtype, self.dtype_reason = devices.choose_dtype(precision, where)
        if isinstance(model, nn.Module):
            if card is None:
                raise ConfigError("card: a network needs its model card; give card=ModelCard(crop_size=…, objective=…)")
            network = model.to(where).eval()
        else:
            network, card = load_model_folder(find_model(model), where)
        self.card = card
        self.preprocess = card.preprocess
        self.objective = card.objective
        self.fit = card.fit
        views = views if views is not None else card.views
        if views not in VIEWS:
            raise ConfigError(f"views: {views}; choose one of {', '.join(map(str, VIEWS))}")
        window, overlap = card.crop_size, overlap if overlap is not None else card.overlap
        if not 0 <= overlap < window:
            raise ConfigError(f"overlap: must lie in 0…{window - 1} px (the window is {window} px), got {overlap}")
        self.runner = Runner(
            network=network,
            window=window,
            overlap=overlap,
            batch_size=batch_size or (1 if where.type == "cpu" else 8),
            device=where,
            dtype=dtype,
            views=views,
            vectors=build_objective(self.objective).vector_maps,
        )

    @property
    def model(self) -> nn.Module:
        """The network that the runner runs."""
        return self.runner.network

    def describe(self) -> str:
        """Device and number format, with the reasons, in one line."""
        name = str(self.runner.dtype).removeprefix("torch.")
        return f"device: {self.runner.device} ({self.device_reason}), {name} ({self.dtype_reason})"

    def segment(
        self, image: Image, options: SegmentOptions | None = None, **changes: Unpack[SegmentKwargs]
    ) -> SegmentationResult:
        """Segment one plane.

        Args:
            image: a path, (H, W), (H, W, 3 or 4) colour, or (C, H, W) channels, of any number type.
            options: reading and decoding options.
            **changes: single fields of `SegmentOptions`, e.g. `channel=0` or `axes="CYX"`.

        Raises:
            ConfigError: unknown options, or an image of several time points or depths (see `segment_planes`).
            DataError: the image cannot be read.
        """
        options = (options or SegmentOptions()).changed(changes)
        opened = choose_depth(open_image(image, options.axes), options.z, options.channel)
        count = count_planes(opened)
        if count != 1:
            raise ConfigError(
                f"the image is a stack of {count} planes ({opened.axes}, {opened.axes_source}); use segment_planes(), "
                "name its axes, e.g. axes='CYX', or choose a depth, e.g. z='best'"
            )
        return next(self.stream(iter_planes(opened, options.channel), options))

    def segment_planes(
        self, image: Image, options: SegmentOptions | None = None, **changes: Unpack[SegmentKwargs]
    ) -> Iterator[SegmentationResult]:
        """Segment every time point and depth of an image, each on its own; see `segment` for the arguments."""
        options = (options or SegmentOptions()).changed(changes)
        opened = choose_depth(open_image(image, options.axes), options.z, options.channel)
        yield from self.stream(iter_planes(opened, options.channel), options)

    def stream(
        self, planes: Iterable[Plane], options: SegmentOptions, folder: Path | None = None
    ) -> Iterator[SegmentationResult]:
        """Segment planes one after the other, windows batched across them; `folder` takes scratch files."""
        for is_large, group in groupby(planes, key=lambda plane: self.is_large(plane, options)):
            if is_large:
                for plane in group:
                    result = self.segment_large(plane, options, Scratch(folder))
                    _tell(result.plane, result.notes)
                    yield result
                continue
            prepared = (self.prepare(plane, options) for plane in group)
            for job, maps in self.predict(prepared):
                result = self.finish(job, maps, options)
                _tell(result.plane, result.notes)
                yield result

    def place(self, size: tuple[int, int], scale: float = 1.0) -> Placement:
        """Place an image of `size` (height, width) px, scaled by a factor, as the model sees it."""
        return Placement.of(size, window=self.runner.window, fit=self.fit, scale=scale, rescales=self.card.rescales)

    def is_large(self, plane: Plane, options: SegmentOptions) -> bool:
        """True if the plane goes through `segment_large`: past `large_pixels`, at its own or at the model's scale."""
        if self.fit != "tile":
            return False
        scale = 1.0 if self.estimates(options) else told_scale(self.card.training, options)
        return max(math.prod(plane.size), math.prod(self.place(plane.size, scale).frame)) > self.large_pixels

    def segment_large(
        self, plane: Plane, options: SegmentOptions, scratch: Scratch | None = None
    ) -> SegmentationResult:
        """Segment a plane in bounded memory: streamed windows, maps and labels in scratch files.

        The cells are those that `segment` finds, whatever their numbers.
        """
        scratch = scratch or Scratch()
        plane = self._sized(loaded(plane, scratch.folder), options)
        image: Source = StreamedInput(plane.gray, self.preprocess)
        scale, notes = self._scale_of(image, options)
        place = self.place(plane.size, scale)
        source = place.source(image)
        result = segment_large(
            self.runner,
            plane,
            source,
            place,
            options.decoding(self.objective, scale),
            scratch=scratch,
            notes=tuple(notes),
        )
        if options.embeddings:
            embeddings = cell_embeddings(self.runner, result.labels, lambda at: source.region(*at.slices), place)
            result = dataclasses.replace(result, embeddings=embeddings)
        return result

    def prepare(self, plane: Plane, options: SegmentOptions) -> Prepared:
        """Preprocess a plane; thread-safe."""
        plane = self._sized(loaded(plane), options)
        gray: NDArray[Any] = plane.gray
        notes: list[Note] = []
        invalid = ~np.isfinite(gray) if gray.dtype.kind == "f" else None
        if invalid is not None and not invalid.any():
            invalid = None
        if invalid is not None:
            text = f"{invalid.mean():.1%} of the pixels are NaN or infinite: no cells are reported there"
            notes.append(Note(text=text, severity="warning"))
        finite = gray if invalid is None else gray[~invalid]
        if finite.size == 0 or finite.min() == finite.max():
            notes.append(CONSTANT)
            return Prepared(
                Job(plane=plane, placement=self.place(plane.size), invalid=invalid, notes=tuple(notes)), None
            )
        z: NDArray[Any] = preprocess_plane(gray, self.preprocess)
        scale, said = self._scale_of(WholeSource(z), options)
        notes += said
        place = self.place(plane.size, scale)
        z = place.image(z)
        kept = z if options.embeddings else None
        return Prepared(Job(plane=plane, placement=place, invalid=invalid, notes=tuple(notes), kept=kept), z)

    def _sized(self, plane: InputPlane, options: SegmentOptions) -> InputPlane:
        """The plane with the pixel size that the user gave, if any."""
        return plane if options.pixel_size is None else dataclasses.replace(plane, pixel_size=options.pixel_size)

    def _scale_of(self, image: Source, options: SegmentOptions) -> tuple[float, list[Note]]:
        """Choose the factor from an image's pixels to the model's; returned with notes for the user."""
        if not self.estimates(options):
            scale = told_scale(self.card.training, options)
            text = f"scaled by {scale:.3g} to the size of the cells that the model was trained on"
            return scale, [Note(text=text, severity="info")] if scale != 1 else []
        found = self.estimate_diameter(image, options)
        return found.scale, [found.note]

    def estimates(self, options: SegmentOptions) -> bool:
        """Decide if the scale is estimated: on request, or by default for models trained on rescaled images."""
        if options.diameter == "model" and self.card.rescales:
            return options.pixel_size is None or not self.card.training.pixel_size
        return options.diameter == "auto"

    def estimate_diameter(self, image: Source, options: SegmentOptions | None = None) -> Estimate:
        """Estimate the typical diameter of the cells in a preprocessed image, with the model itself.

        Raises:
            ConfigError: the model does not predict flows, or does not record the diameter it was trained at.
        """
        trained = self.card.training.diameters
        if trained is None or not build_objective(self.objective).cell_check or self.fit != "tile":
            lacks = "record the diameter it was trained at" if trained is None else "predict flows in tiles"
            raise ConfigError(f"diameter: auto is not possible, as this model does not {lacks}; give a number")
        if image.constant:
            return Estimate(scale=1.0, diameter=None, cells=0)
        config = (options or SegmentOptions()).decoding(self.objective)
        unchecked = dataclasses.replace(build_objective(config).without_check(), max_size_fraction=1.0)
        told = counted(self.runner.on_windows, MOST_WINDOWS)
        runner = dataclasses.replace(self.runner, views=1, on_windows=told)
        return estimate_diameter(image, runner, build_objective(unchecked), trained)

    def fingerprint(self) -> str:
        """A checksum of the weights and the configuration: work begun with another model is not continued."""
        digest = hashlib.blake2b(json.dumps(as_json(self.card), sort_keys=True).encode(), digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{digest.hexdigest()} {self.runner.window} {self.runner.overlap} {self.runner.dtype}" + (
            f" {self.runner.views} views" if self.runner.views > 1 else ""
        )

    def predict(self, prepared: Iterable[Prepared]) -> Iterator[tuple[Job, Float32 | None]]:
        """Run the network; (job, maps (K, h, w)) in the order given, maps None for jobs without a frame."""
        order: deque[tuple[Job, bool]] = deque()

        def frames() -> Iterator[tuple[Job, Float32]]:
            for job, z in prepared:
                order.append((job, z is not None))
                if z is not None:
                    yield job, z

        def without_frame() -> Iterator[tuple[Job, None]]:
            while order and not order[0][1]:
                yield order.popleft()[0], None

        for job, maps in self.runner.stream(frames()):
            yield from without_frame()
            order.popleft()
            yield job, maps
        yield from without_frame()

    def finish(self, job: Job, maps: Float32 | None, options: SegmentOptions) -> SegmentationResult:
        """Decode the maps at the input's size; thread-safe."""
        objective = build_objective(options.decoding(self.objective, job.placement.scale))
        dropped: list[Note] = []
        if maps is None:
            labels: NDArray[Any] = np.zeros(job.placement.size, np.uint16)
        else:
            maps = job.placement.undo(maps)
            decoded = objective.decode_with_notes(maps)
            decoded.log_details()
            dropped = [Note(text=text, severity="warning") for text in decoded.notes]
            labels = decoded.labels
            if job.invalid is not None:
                labels[job.invalid] = 0
            labels = compact_dtype(labels)
        embeddings = None
        if options.embeddings:
            frame = np.zeros(job.placement.frame, np.float32) if job.kept is None else job.kept
            embeddings = cell_embeddings(self.runner, labels, lambda at: frame[at.slices], job.placement)
        return SegmentationResult(
            labels=labels,
            maps=maps,
            objective=objective,
            plane=job.plane,
            notes=(*job.notes, *dropped),
            embeddings=embeddings,
        )


def _tell(plane: InputPlane, notes: Iterable[Note]) -> None:
    for note in notes:
        tell(f"{plane.name + ': ' if plane.name else ''}{note}", note.severity)
