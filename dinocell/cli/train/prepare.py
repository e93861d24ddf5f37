"""`dinocell prepare` and data_curation/prepare_labelled.py: labelled data in the layout of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell.cli.arguments import Arguments, Syntax, setting, split, words
from dinocell.cli.recipe import run_command
from dinocell.core.config import describe, load
from dinocell.core.errors import ConfigError
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.prepare.convert import prepare
from dinocell.training.outcome import RunOutcome

PACKAGED = Path(__file__).parents[2] / "datasets" / "prepare" / "presets"
"""Recipes of an installed package: setup.py copies them there when it builds one."""
IN_TREE = Path(__file__).parents[3] / "data_curation" / "configs"
PRESETS = PACKAGED if PACKAGED.is_dir() else IN_TREE
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

FORMAT is a layout ({layouts}), a preset of data_curation/configs
({presets}) or the path of a YAML recipe.
DIR also gets dataset.yaml and {report}, which says what was refused and why.
"""


SYNTAX = Syntax(config=PrepareConfig, settings={"--out": "out"}, valued=())


def main(argv: Sequence[str] | None = None, presets: Path = PRESETS) -> int:
    """Run the command and return its exit code; `presets` is the folder of named recipes."""
    return run_command(
        words(argv) or ["--help"],
        help_text=lambda: _help_text(presets),
        syntax=lambda: SYNTAX,
        configure=lambda given: configure(given, presets),
        run=_run,
    )


def _run(config: PrepareConfig) -> RunOutcome:
    prepare(config)
    return RunOutcome(folder=Path(config.out))


def _help_text(presets: Path) -> str:
    names = ", ".join(_preset_names(presets)) or "none found here"
    usage = USAGE.format(layouts=", ".join(BUILT_IN), presets=names, report="prepare_report.csv")
    return f"{usage}\nEvery key:\n{describe(PrepareConfig)}"


def parse(arguments: Sequence[str], presets: Path = PRESETS) -> PrepareConfig:
    """Config of a command line.

    Raises:
        ConfigError: an unknown format, no SRC or --out, or a wrong key or value.
    """
    return configure(split(arguments, SYNTAX), presets)


def configure(given: Arguments, presets: Path = PRESETS) -> PrepareConfig:
    """Config of a split command line; errors as `parse`."""
    if len(given.files) != 2 or not any(item.startswith("out=") for item in given.settings):
        raise ConfigError("prepare needs a format, a source and a folder: prepare FORMAT SRC --out DIR; see --help")
    name, source = given.files
    path, base = _format(name, presets)
    return load(PrepareConfig, path, [*base, setting(PrepareConfig, "src", source), *given.settings])


def _format(name: str, presets: Path) -> tuple[Path | None, list[str]]:
    if name in BUILT_IN:
        return None, BUILT_IN[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name), []
    names = _preset_names(presets)
    if name in names:
        return presets / f"{name}.yaml", []
    raise ConfigError(f"unknown format {name!r}: choose one of {', '.join([*BUILT_IN, *names])}, or a YAML recipe")


def _preset_names(presets: Path) -> list[str]:
    """Recipes that prepare labelled data (they name a layout), not those of curation."""
    return [file.stem for file in sorted(presets.glob("*.yaml")) if "\nlayout:" in file.read_text(encoding="utf-8")]
