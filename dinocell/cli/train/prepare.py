"""The command line of `dinocell prepare`, shared with data_curation/prepare_labelled.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dinocell.cli.recipe import parse_arguments
from dinocell.core.config import describe, load, to_yaml
from dinocell.core.errors import ConfigError, run_main
from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.prepare.convert import prepare

PACKAGED = Path(__file__).parents[2] / "datasets" / "prepare" / "presets"
"""What an installed package holds: setup.py copies the recipes there when it builds one."""
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
USAGE = """Convert a published labelled data set to DATASET/{{train,val,test}}/{{images,masks}}.

usage: prepare FORMAT SRC --out DIR [--print-config] [key=value …]

FORMAT is a layout ({layouts}), a preset of data_curation/configs
({presets}) or the path of a YAML recipe.
DIR also gets dataset.yaml and {report}, which says what was refused and why.
"""


def main(argv: Sequence[str] | None = None, presets: Path = PRESETS) -> None:
    """Run the command and exit the process; `presets` is the folder of named recipes."""
    run_main(_main, list(sys.argv[1:] if argv is None else argv), presets)


def _main(arguments: list[str], presets: Path) -> None:
    if not arguments or "--help" in arguments or "-h" in arguments:
        names = ", ".join(_preset_names(presets)) or "none found here"
        usage = USAGE.format(layouts=", ".join(BUILT_IN), presets=names, report="prepare_report.csv")
        print(f"{usage}\nEvery key:\n{describe(PrepareConfig)}")
        return
    config, print_only = parse(arguments, presets)
    if print_only:
        print(to_yaml(config), end="")
    else:
        prepare(config)


def parse(arguments: Sequence[str], presets: Path = PRESETS) -> tuple[PrepareConfig, bool]:
    """Config of a command line, and whether only to print it.

    Raises:
        ConfigError: an unknown format, no SRC or --out, or a wrong key or value.
    """
    words: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--out" or item.startswith("--out="):
            value = item.partition("=")[2] or next(items, "")
            rest.append(f"out={json.dumps(value)}")
        elif item.startswith("-") or "=" in item:
            rest.append(item)
        else:
            words.append(item)
    if len(words) != 2 or not any(item.startswith("out=") for item in rest):
        raise ConfigError("prepare needs a format, a source and a folder: prepare FORMAT SRC --out DIR; see --help")
    path, base = _format(words[0], presets)
    _, overrides, print_only = parse_arguments(rest)
    return load(PrepareConfig, path, [*base, f"src={json.dumps(words[1])}", *overrides]), print_only


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
