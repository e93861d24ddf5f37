"""`dinocell prepare` and data_curation/prepare_labelled.py: labelled data in the layout of training."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dinocell.cli.arguments import Arguments, Syntax, setting, split, words
from dinocell.cli.recipe import run_command
from dinocell.core.config import describe, load
from dinocell.core.errors import ConfigError
from dinocell.core.recipes import find_recipe, recipe_folder, recipe_names
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.prepare.convert import prepare
from dinocell.training.outcome import RunOutcome

BUILT_IN = {
    "pairs": ["layout=pairs"],
    "cellpose": ["layout=pairs", "images='**/*'", r"mask_from='(?<!_masks)\.[a-z]+$'", "mask_to='_masks.png'"],
    "cellpose_seg": ["layout=pairs", r"mask_from='(?<!_masks)\.(png|tif|tiff|jpg)$'", "mask_to='_seg.npy'"],
    "coco": ["layout=coco", "annotations='**/*.json'"],
    "dsb2018": ["layout=dsb2018"],
    "ctc": ["layout=ctc"],
    "binary": ["layout=binary"],
}
USAGE = """Convert a published labelled dataset to DATASET/{{train,val,test}}/{{images,masks}}.

usage: prepare FORMAT SRC --out DIR [--print-config] [key=value …]

FORMAT is a layout ({layouts}), a recipe known by name
({presets}) or the path of a YAML recipe.
DIR also gets dataset.yaml and {report}, which says what was refused and why.
"""


SYNTAX = Syntax(config=PrepareConfig, settings={"--out": "out"}, valued=())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        words(argv) or ["--help"], help_text=_help_text, syntax=lambda: SYNTAX, configure=configure, run=_run
    )


def _run(config: PrepareConfig) -> RunOutcome:
    prepare(config)
    return RunOutcome(folder=Path(config.out))


def _help_text() -> str:
    names = ", ".join(_preset_names()) or "none found here"
    usage = USAGE.format(layouts=", ".join(BUILT_IN), presets=names, report="prepare_report.csv")
    return f"{usage}\nEvery key:\n{describe(PrepareConfig)}"


def parse(arguments: Sequence[str]) -> PrepareConfig:
    """Config of a command line.

    Raises:
        ConfigError: an unknown format, no SRC or --out, or a wrong key or value.
    """
    return configure(split(arguments, SYNTAX))


def configure(given: Arguments) -> PrepareConfig:
    """Config of a split command line; errors as `parse`."""
    if len(given.files) != 2 or not any(item.startswith("out=") for item in given.settings):
        raise ConfigError("prepare needs a format, a source and a folder: prepare FORMAT SRC --out DIR; see --help")
    name, source = given.files
    path, base = _format(name)
    return load(PrepareConfig, path, [*base, setting(PrepareConfig, "src", source), *given.settings])


def _format(name: str) -> tuple[Path | None, list[str]]:
    if name in BUILT_IN:
        return None, BUILT_IN[name]
    names = _preset_names()
    if name in names or Path(name).suffix in (".yaml", ".yml"):
        return find_recipe(name, "data_curation"), []
    known = [*BUILT_IN, *names]
    close = difflib.get_close_matches(name, known, n=1)
    nearest = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}, or a YAML recipe"
    raise ConfigError(f"unknown format {name!r}: {nearest}")


def _preset_names() -> list[str]:
    """Recipes that prepare labelled data (they name a layout), not those of curation."""
    folder = recipe_folder("data_curation")
    texts = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in recipe_names("data_curation")}
    return [name for name, text in texts.items() if "\nlayout:" in text]
