"""`dinocell finetune`: stage 2, training on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinocell.cli.recipe import recipe_main, recipe_parse, recipe_plan
from dinocell.cluster.stages import StageSpec
from dinocell.training.outcome import RunOutcome

if TYPE_CHECKING:
    from dinocell.finetune import FinetuneConfig


def parse(arguments: Sequence[str]) -> FinetuneConfig:
    """Config of a command line.

    Raises:
        ConfigError: an unknown option or key, or a wrong value.
    """
    from dinocell.finetune import FinetuneConfig

    return recipe_parse(FinetuneConfig, "finetune", arguments)


def run(config: FinetuneConfig) -> RunOutcome:
    """Train."""
    from dinocell import finetune

    return finetune.run(config)


SPEC = StageSpec(name="finetune", parse=parse, plan=recipe_plan, run=run)


def main(argv: Sequence[str] | None = None, description: str = "Stage 2: training on labelled images.") -> int:
    """Run the command and return its exit code."""
    from dinocell.finetune import FinetuneConfig

    return recipe_main(FinetuneConfig, "finetune", run, description, argv)
