"""`dinocell segment`: the cells of any image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from typer import Argument, Option

from dinocell.cli.arguments import words
from dinocell.cli.options import call
from dinocell.cluster.stages import Plan, Share, StageSpec
from dinocell.core import log
from dinocell.training.outcome import RunOutcome

if TYPE_CHECKING:
    from dinocell.segmentation import SegmentOptions


@dataclass(frozen=True, kw_only=True)
class SegmentArguments:
    """Arguments of `dinocell.segmentation.run`, by their names."""

    inputs: tuple[str, ...]
    out: Path
    model: str | None
    save: str
    device: str
    batch_size: int | None
    views: int | None
    skip_existing: bool
    options: SegmentOptions

    def parameters(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


def _arguments(
    inputs: Annotated[list[str], Argument(help="Images, folders or patterns.")],
    out: Annotated[Path, Option(help="Folder for the results.")],
    model: Annotated[
        str | None, Option(help="Model folder, or a packaged name (dinocell models); default: cells.")
    ] = None,
    save: Annotated[
        str, Option(help="Any of labels,zarr,overlay,outlines,csv,geojson,rois,npy,flows,embeddings.")
    ] = "labels",
    axes: Annotated[str | None, Option(help="Axes of the files, e.g. CYX, where they are guessed wrong.")] = None,
    channel: Annotated[
        str | None, Option(help="Channel to segment, number from 0 or name; default: all combined.")
    ] = None,
    z: Annotated[str | None, Option(help="Z stacks: best, max, mean or a number from 0; default: each.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[int | None, Option(help="Windows per forward pass; default: by device.")] = None,
    views: Annotated[
        int | None,
        Option(
            help="Average over 1, 2, 4 or 8 turned and mirrored views: that many times slower; default: the model's."
        ),
    ] = None,
    skip_existing: Annotated[bool, Option(help="Leave images that already have results.")] = False,
    diameter: Annotated[
        str | None, Option(help="Typical cell diameter, px; auto: estimated; own: image scale kept.")
    ] = None,
    pixel_size: Annotated[float | None, Option(help="Pixel size, µm; overrides the files'.")] = None,
    threshold: Annotated[float | None, Option(help="Probability above which a pixel is a cell's.")] = None,
    min_size: Annotated[int | None, Option(help="Smallest cell kept, px.")] = None,
    flow_error: Annotated[float | None, Option(help="Largest flow error of a cell; 0 = no check.")] = None,
) -> SegmentArguments:
    """Segment the cells of any image; labels come back at each input's size."""
    from dinocell.segmentation import SegmentOptions

    return SegmentArguments(
        inputs=tuple(inputs),
        out=out,
        model=model,
        save=save,
        device=device,
        batch_size=batch_size,
        views=views,
        skip_existing=skip_existing,
        options=SegmentOptions.parse(
            {
                "axes": axes,
                "channel": channel,
                "z": z,
                "diameter": diameter,
                "pixel_size": pixel_size,
                "threshold": threshold,
                "min_size": min_size,
                "flow_error": flow_error,
            }
        ),
    )


def parse(arguments: Sequence[str]) -> SegmentArguments:
    """Read a command line.

    Raises:
        ConfigError: an argument is missing, unknown or of the wrong type.
    """
    return call(_arguments, "segment", arguments)


def plan(given: SegmentArguments) -> Plan:
    """Folder and text of the settings, once the model and the images are found."""
    from dinocell.models.packaged import find_model
    from dinocell.segmentation import image_files
    from dinocell.segmentation.outputs.save import check_formats

    check_formats(given.save)
    find_model(given.model)
    log.info(f"{len(image_files(given.inputs))} images")
    settings = given.parameters() | {"out": str(given.out), "options": dataclasses.asdict(given.options)}
    settings |= {"inputs": list(given.inputs)}
    return Plan(run_folder=given.out, settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def run(given: SegmentArguments) -> RunOutcome:
    """Segment; an image that fails is counted."""
    from dinocell import segmentation

    return RunOutcome(folder=given.out, failed=len(segmentation.run(**given.parameters()).failed))


def share(given: SegmentArguments, part: Share) -> None:
    """Segment one task's share of the files."""
    from dinocell import segmentation

    shard = segmentation.Shard(index=part.index, count=part.count, since=part.since)
    segmentation.run(**given.parameters(), shard=shard)


def merge(given: SegmentArguments, count: int, since: float) -> RunOutcome:
    """Join the tasks' summaries."""
    from dinocell import segmentation

    del since  # every task has its own summary
    return RunOutcome(folder=given.out, failed=segmentation.merge_shards(given.out, count))


SPEC = StageSpec(name="segment", parse=parse, plan=plan, run=run, share=share, merge=merge)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(parse(words(argv))).exit_code
