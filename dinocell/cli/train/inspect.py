"""`dinocell inspect`: a labelled dataset before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinocell.cli.arguments import Syntax, asks_help, read, setting, split, words
from dinocell.core.config import to_yaml

USAGE = """Look at a labelled dataset before training: what looks wrong, sizes, overlays, crops with their targets.

usage: inspect DATASET… [--config FILE or NAME] [--out inspect.html] [--print-config] [key=value …]

--config names the recipe of the training whose crops and checks are meant; default: the paper's. Its settings can be
changed by key=value; `dinocell finetune --help` lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = words(argv)
    if asks_help(arguments):
        print(USAGE)
        return 0
    from dinocell import finetune

    given = split(arguments, Syntax(config=finetune.FinetuneConfig, valued=("--config", "--out"), recipes="finetune"))
    roots = [setting(finetune.FinetuneConfig, "data.root", given.files)] if given.files else []
    config = read(finetune.FinetuneConfig, given, *roots)
    if given.print_only:
        print(to_yaml(config), end="")
    else:
        finetune.inspect_datasets(config, Path(given.one("--out", "inspect.html")))
    return 0
