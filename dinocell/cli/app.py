"""The `dinocell` command. Every subcommand imports its part only when it is called, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dinocell import __version__
from dinocell.core.errors import ConfigError, run_main

app = typer.Typer(
    name="dinocell",
    help="Turn unlabelled microscopy and a few labelled images into a cell-segmentation model, and segment with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def run_app(argv: Sequence[str] | None = None) -> None:
    """Run the command line; never a traceback for a user's mistake."""
    run_main(_run, list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> Any:
    return app(arguments, standalone_mode=True)


def _exit(function: Callable[..., Any], *args: Any) -> None:
    """Leave with the function's exit code: typer ignores a command's return value."""
    run_main(function, *args)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"dinocell {__version__}")
        raise typer.Exit


@app.command(context_settings={})
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sample, the runs and the report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the sample and of both trainings.")] = 0,
) -> None:
    """The whole pipeline on an embedded sample: curate, pretrain, export, fine-tune, evaluate, segment, report."""
    from dinocell.demo.pipeline import run

    _exit(run, out, seed)


@app.command(context_settings=PASS_ON)
def curate(context: typer.Context) -> None:
    """Choose training crops from a pile of images: SRC… --out DIR [--size 1024] [key=value …]."""
    from dinocell.cli.train import curate

    curate.main(context.args)


@app.command(context_settings=PASS_ON)
def prepare(context: typer.Context) -> None:
    """Bring a labelled data set into our layout: FORMAT SRC --out DIR."""
    from dinocell.cli.train import prepare

    prepare.main(context.args)


@app.command(context_settings=PASS_ON)
def pretrain(context: typer.Context) -> None:
    """Stage 1, self-supervised: --config FILE [key=value …] (the same as ssl/train.py)."""
    from dinocell import pretrain
    from dinocell.cli.recipe import recipe_main

    recipe_main(pretrain.PretrainConfig, pretrain.run, "Stage 1: self-supervised pretraining on crops.", context.args)


@app.command(context_settings=PASS_ON)
def finetune(context: typer.Context) -> None:
    """Stage 2, on labelled images: --config FILE [key=value …] (the same as finetune/train.py)."""
    from dinocell import finetune
    from dinocell.cli.recipe import recipe_main

    recipe_main(finetune.FinetuneConfig, finetune.run, "Stage 2: fine-tuning on labelled images.", context.args)


@app.command()
def inspect(
    datasets: Annotated[list[str], typer.Argument(help="Labelled data sets, and key=value settings of a recipe.")],
    config: Annotated[
        Path | None, typer.Option(help="Recipe whose crops and checks are meant; default: the paper's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("inspect.html"),
) -> None:
    """Look at a labelled data set before training: what looks wrong, sizes, overlays, crops with their targets."""
    from dinocell import finetune
    from dinocell.core.config import load

    roots = [text for text in datasets if "=" not in text or Path(text).exists()]
    settings = [text for text in datasets if text not in roots]
    if roots:
        settings.append(f"data.root={json.dumps(roots)}")
    _exit(lambda: finetune.inspect_datasets(load(finetune.FinetuneConfig, config, settings), out) and None)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="Run folder of stage 1; onnx, bioimage: a trained model.")],
    to: Annotated[str, typer.Option(help="A backbone as backbone, dinov2, hf, timm; a model as onnx, bioimage.")] = (
        "backbone"
    ),
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; default: inside the given folder, or here for a packaged model."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="onnx: crops a call; default: any number.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="bioimage: who made the model; repeatable.")] = None,
    licence: Annotated[str, typer.Option(help="bioimage: SPDX licence of the weights; default: the model's.")] = "",
    name: Annotated[str, typer.Option(help="bioimage: name of the package; default: after the folder.")] = "",
    image: Annotated[Path | None, typer.Option(help="bioimage: test image; default: a generated one.")] = None,
) -> None:
    """Write a stage-1 backbone (as ssl/export_backbone.py), or a trained model for other software."""

    def run() -> None:
        if to == "onnx":
            from dinocell.export.onnx_file import export_onnx

            print(export_onnx(source, out, batch=batch).path)
        elif to == "bioimage":
            from dinocell.export.bioimage import About, export_bioimage

            about = About(authors=tuple(author or ()), licence=licence, name=name)
            print(export_bioimage(source, out, about=about, image=image).path)
        else:
            from dinocell import models

            kind = _one_of(to, "backbone", "dinov2", "hf", "timm", "onnx", "bioimage")
            print(models.export_backbone(source, to=kind, out=out))

    _exit(run)


@app.command()
def segment(
    inputs: Annotated[list[str], typer.Argument(help="Images, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder, or a packaged name (dinocell models); default: cells.")
    ] = None,
    save: Annotated[
        str, typer.Option(help="Any of labels,zarr,overlay,outlines,csv,geojson,rois,npy,flows,embeddings.")
    ] = "labels",
    axes: Annotated[str | None, typer.Option(help="Axes of the files, e.g. CYX, where they are guessed wrong.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel to segment, number from 0 or name; default: all combined.")
    ] = None,
    z: Annotated[str | None, typer.Option(help="Z stacks: best, max, mean or a number from 0; default: each.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Windows per forward pass; default: by device.")] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Average over 1, 2, 4 or 8 turned and mirrored views: that many times slower; default: the model's."
        ),
    ] = None,
    skip_existing: Annotated[bool, typer.Option(help="Leave images that already have results.")] = False,
    diameter: Annotated[
        str | None,
        typer.Option(help="Typical cell diameter, px; auto: estimated; own: image scale kept."),
    ] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Pixel size, µm; overrides the files'.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability above which a pixel is a cell's.")] = None,
    min_size: Annotated[int | None, typer.Option(help="Smallest cell kept, px.")] = None,
    flow_error: Annotated[float | None, typer.Option(help="Largest flow error of a cell; 0 = no check.")] = None,
) -> None:
    """Segment cells in any image; labels come back at each input's size."""
    from dinocell import segmentation

    _exit(
        lambda: (
            segmentation.run(
                inputs,
                out,
                model,
                save=save,
                options=segmentation.SegmentOptions.parse(
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
                device=device,
                batch_size=batch_size,
                views=views,
                skip_existing=skip_existing,
            ).exit_code
        )
    )


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """The models in this installation: size, network, training data, licence, scores. Nothing is downloaded."""
    from dinocell.models import packaged

    _exit(lambda: print(packaged.models_json() if as_json else packaged.models_text()))


@app.command()
def halve(
    model: Annotated[str, typer.Argument(help="Model folder, fine-tuning run or packaged name.")],
    out: Annotated[Path, typer.Option(help="Folder for the smaller model, made if absent.")],
) -> None:
    """Write a model folder with weights in float16, half the size; loading turns them into float32 again."""
    from dinocell.models import halve_model_folder
    from dinocell.models.packaged import find_model

    _exit(lambda: print(halve_model_folder(find_model(model), out)))


@app.command()
def evaluate(
    labels: Annotated[Path, typer.Option(help="Folder of true label images.")],
    predictions: Annotated[list[str], typer.Option(help="Predicted labels: FOLDER or NAME=FOLDER; repeatable.")],
    ignore: Annotated[Path | None, typer.Option(help="Folder of ignore images (nonzero = not annotated).")] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes; CSV and report beside it.")] = Path("evaluation.json"),
) -> None:
    """Score any tool's label images: SEG, DET, MMA, AP, PQ."""
    from dinocell import evaluation

    _exit(lambda: evaluation.score_folders(labels, dict(_named(p) for p in predictions), ignore, out) and None)


@app.command(context_settings=PASS_ON)
def adapt(context: typer.Context) -> None:
    """Adapt a model to unlabelled images of your microscope: IMAGES… --from MODEL --out DIR [--labels DATASET]."""
    from dinocell.cli.train import adapt

    adapt.main(context.args)


@app.command(context_settings=PASS_ON)
def pca(context: typer.Context) -> None:
    """What backbones see: IMAGE… --weights A [B …] [--mode resize pad tile] [--out pca.png]."""
    from dinocell.cli.more import pca

    pca.main(context.args)


def _named(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    return (name, Path(folder)) if separator else (Path(text).name or text, Path(text))


def _one_of(value: str, *known: str) -> Any:
    if value not in known:
        raise ConfigError(f"{value!r} is not known; use one of {', '.join(known)}")
    return value
