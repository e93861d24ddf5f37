"""`dinocell export` and ssl/export_backbone.py: backbones and models for other programs, or at half the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from typer import Argument, Option

from dinocell.cli.arguments import words
from dinocell.cli.options import call
from dinocell.core.errors import ConfigError

Backbone = Literal["backbone", "dinov2", "hf", "timm"]
Target = Literal["backbone", "dinov2", "hf", "timm", "half", "onnx", "bioimage"]
APPLIES: dict[str, str] = {  # option → the one target it is for
    "batch": "onnx",
    "author": "bioimage",
    "licence": "bioimage",
    "name": "bioimage",
    "image": "bioimage",
}


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Model to write, and the format, place and details of what is written."""

    source: str
    to: Target
    out: Path | None
    batch: int | None
    author: tuple[str, ...]
    licence: str
    name: str
    image: Path | None

    def __post_init__(self) -> None:
        if self.to not in get_args(Target):
            raise ConfigError(f"--to: {self.to!r} is not known; use one of {', '.join(get_args(Target))}")
        for option, target in APPLIES.items():
            value = getattr(self, option)
            if value not in (None, "", ()) and self.to != target:
                raise ConfigError(f"--{option}: applies to --to {target} only, not to {self.to}; leave it out")
        if self.to == "half" and self.out is None:
            raise ConfigError("--out: --to half needs a folder for the smaller model; add --out DIR")


def _arguments(
    source: Annotated[str, Argument(help="Run folder of stage 1 or weights; half, onnx, bioimage: a model.")],
    to: Annotated[str, Option(help=f"One of {', '.join(get_args(Target))}.")] = "backbone",
    out: Annotated[Path | None, Option(help="Where to write; default: in the given folder, here for a name.")] = None,
    batch: Annotated[int | None, Option(help="onnx: crops per call; default: any number.")] = None,
    author: Annotated[list[str] | None, Option(help="bioimage: author of the model; repeatable.")] = None,
    licence: Annotated[str, Option(help="bioimage: SPDX licence of the weights; default: the model's.")] = "",
    name: Annotated[str, Option(help="bioimage: name of the package; default: after the folder.")] = "",
    image: Annotated[Path | None, Option(help="bioimage: test image; default: a generated one.")] = None,
) -> ExportArguments:
    """Write a backbone or a trained model for other programs.

    A backbone of stage 1: backbone (backbone.safetensors), dinov2 (.pth), hf or timm (folders).
    A trained model: half (float16 weights, half the size, float32 again when loaded), onnx or bioimage.
    """
    return ExportArguments(
        source=source,
        to=cast(Target, to),
        out=out,
        batch=batch,
        author=tuple(author or ()),
        licence=licence,
        name=name,
        image=image,
    )


def parse(arguments: Sequence[str]) -> ExportArguments:
    """Read a command line.

    Raises:
        ConfigError: an argument is missing, unknown, or for another target.
    """
    return call(_arguments, "export", arguments)


def run(given: ExportArguments) -> Path:
    """Write the file or folder; returns its path.

    Raises:
        ConfigError: no such model, or a package is missing. CheckpointError: damaged weights.
    """
    if given.to == "onnx":
        from dinocell.export.onnx_file import export_onnx

        return export_onnx(given.source, given.out, batch=given.batch).path
    if given.to == "bioimage":
        from dinocell.export.bioimage import About, export_bioimage

        about = About(authors=given.author, licence=given.licence, name=given.name)
        return export_bioimage(given.source, given.out, about=about, image=given.image).path
    from dinocell import models
    from dinocell.models.packaged import find_model

    if given.to == "half":
        assert given.out is not None
        return models.halve_model_folder(find_model(given.source), given.out)
    return models.export_backbone(given.source, to=given.to, out=given.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    print(run(parse(words(argv))))
    return 0
