"""`dinocell adapt`: a model adapted to unlabelled images, if that helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell.adapt.adaptation import run
from dinocell.adapt.config import STEPS, AdaptConfig, make_config
from dinocell.cli.arguments import Arguments, Syntax, split
from dinocell.cli.recipe import run_command
from dinocell.core.config import describe
from dinocell.core.errors import ConfigError
from dinocell.images.listing import list_images
from dinocell.models import ModelCard
from dinocell.models.packaged import PACKAGED, find_model

USAGE = f"""Adapt a model to unlabelled images of your microscope, and say whether it helped.

usage: adapt IMAGES… [--from MODEL] --out DIR [--labels DATASET]… [--steps {STEPS}] [--seed 0] [--device auto]
             [--print-config] [key=value …]

IMAGES are files, folders or patterns. MODEL is a model folder or a packaged model's name; without --from the packaged
model. DIR gets model/ (the model to use from now on), report.html (before and after) and everything in between.
Stage 1 continues from the model's backbone on crops of IMAGES and keeps its best teacher; then the decoder is
re-aligned, on DATASET's labels if there are any, else to the model's own predictions. Where that does not help, model/
is the original model, and the report says so. After an interruption the same command resumes.
"""
SYNTAX = Syntax(config=AdaptConfig, valued=("--from", "--out", "--labels", "--steps", "--seed", "--device"))


def parse(arguments: Sequence[str]) -> AdaptConfig:
    """The config of a command line.

    Raises:
        ConfigError: something is missing, unknown or impossible.
    """
    return configure(split(arguments, SYNTAX))


def configure(given: Arguments) -> AdaptConfig:
    """The config of a split command line; errors as `parse`."""
    if not given.files or not given.all("--out"):
        raise ConfigError("adapt needs images and a folder to write to: adapt IMAGES… --out DIR [--from MODEL]")
    out = Path(given.one("--out", "")).resolve()
    inside = [image for image in given.files if Path(image).is_dir() and out.is_relative_to(Path(image).resolve())]
    if inside:
        raise ConfigError(f"--out: {str(out)!r} lies within the images {inside[0]!r}; give a folder outside them")
    folder = find_model(given.one("--from", "") or None)
    start = folder.name if folder.parent == PACKAGED else str(folder)
    for labels in given.all("--labels"):
        if not Path(labels).is_dir():
            raise ConfigError(f"--labels: {labels!r} is not a directory; give a dataset (train/images, train/masks)")
    return make_config(
        given.files,
        start,
        given.one("--out", ""),
        card=ModelCard.read(folder),
        count=len(list_images(given.files)),
        labels=given.all("--labels"),
        steps=given.number("--steps", STEPS),
        seed=given.number("--seed", 0),
        device=given.one("--device", "auto"),
        overrides=given.settings,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        argv,
        help_text=lambda: f"{USAGE}\nEvery key (see --print-config for what they start from):\n{describe(AdaptConfig)}",
        syntax=lambda: SYNTAX,
        configure=configure,
        run=run,
    )
