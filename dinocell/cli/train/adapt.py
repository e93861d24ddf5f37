"""The command line of `dinocell adapt`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinocell.adapt.adaptation import run
from dinocell.adapt.config import STEPS, AdaptConfig, make_config
from dinocell.cli.recipe import run_stage
from dinocell.core.config import describe, to_yaml
from dinocell.core.errors import ConfigError, run_main
from dinocell.finetune.from_model import model_meta
from dinocell.images.listing import list_images
from dinocell.models.packaged import PACKAGED, find_model

USAGE = f"""Adapt a model to unlabelled images of your microscope, and say whether it helped.

usage: adapt IMAGES… [--from MODEL] --out DIR [--labels DATASET]… [--steps {STEPS}] [--seed 0] [--device auto]
             [--print-config] [key=value …]

IMAGES are files, folders or patterns. MODEL is a model folder or a packaged model's name; without --from the packaged
model. DIR gets model/ (the model to use from now on), report.html (before and after) and everything in between.
Stage 1 goes on from the model's backbone on crops of IMAGES and keeps its best teacher; then the decoder is re-aligned,
on DATASET's labels if there are any, else to the model's own predictions. Where that does not help, model/ is the
original model, and the report says so. Interrupted or killed, the same command goes on where it stopped.
"""
_VALUED = ("--from", "--out", "--labels", "--steps", "--seed", "--device")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line, split."""

    images: list[str]
    options: dict[str, list[str]]
    settings: list[str]
    print_only: bool

    def one(self, name: str, default: str) -> str:
        """The last value given for an option."""
        return self.options.get(name, [default])[-1]

    def number(self, name: str, default: int) -> int:
        """A whole number given for an option."""
        text = self.one(name, str(default))
        if not text.isdigit():
            raise ConfigError(f"{name}: {text!r} is not a whole number; for example {name} {default}")
        return int(text)


def split(arguments: Sequence[str]) -> Arguments:
    """Images, options and key=value settings of a command line.

    Raises:
        ConfigError: an unknown option, or one without its value.
    """
    images: list[str] = []
    options: dict[str, list[str]] = {}
    settings: list[str] = []
    print_only = False
    items = iter(arguments)
    for item in items:
        name, separator, value = item.partition("=")
        if name in _VALUED:
            value = value if separator else next(items, "")
            if not value:
                raise ConfigError(f"{name} needs a value after it")
            options.setdefault(name, []).append(value)
        elif item == "--print-config":
            print_only = True
        elif item.startswith("-"):
            raise ConfigError(f"unknown option {item!r}; options: {', '.join(_VALUED)}, --print-config, --help")
        elif separator and not Path(item).exists() and name.replace(".", "").replace("_", "").isalnum():
            settings.append(item)
        else:
            images.append(item)
    return Arguments(images=images, options=options, settings=settings, print_only=print_only)


def parse(arguments: Sequence[str]) -> AdaptConfig:
    """The config of a command line.

    Raises:
        ConfigError: something is missing, unknown or impossible.
    """
    return configure(split(arguments))


def configure(given: Arguments) -> AdaptConfig:
    """The config of a split command line; errors as `parse`."""
    if not given.images or "--out" not in given.options:
        raise ConfigError("adapt needs images and a folder to write to: adapt IMAGES… --out DIR [--from MODEL]")
    out = Path(given.one("--out", "")).resolve()
    inside = [image for image in given.images if Path(image).is_dir() and out.is_relative_to(Path(image).resolve())]
    if inside:
        raise ConfigError(f"--out: {str(out)!r} lies within the images {inside[0]!r}; give a folder outside them")
    folder = find_model(given.options["--from"][-1] if "--from" in given.options else None)
    start = folder.name if folder.parent == PACKAGED else str(folder)
    for labels in given.options.get("--labels", []):
        if not Path(labels).is_dir():
            raise ConfigError(f"--labels: {labels!r} is no folder; give a data set with train/images and train/masks")
    return make_config(
        given.images,
        start,
        given.one("--out", ""),
        meta=model_meta(folder),
        count=len(list_images(given.images)),
        labels=given.options.get("--labels", []),
        steps=given.number("--steps", STEPS),
        seed=given.number("--seed", 0),
        device=given.one("--device", "auto"),
        overrides=given.settings,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit the process."""
    run_main(_main, list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(f"{USAGE}\nEvery key (those of stage 1 and of the decoder start from safe values, see --print-config):")
        print(describe(AdaptConfig))
        return 0
    given = split(arguments)
    config = configure(given)
    if given.print_only:
        print(to_yaml(config), end="")
        return 0
    return run_stage(run, config)
