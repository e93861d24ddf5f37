"""`dinocell pretrain`: stage 1, self-supervised training on unlabelled crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinocell.cli.recipe import recipe_main, recipe_parse, recipe_plan
from dinocell.cluster.stages import StageSpec
from dinocell.training.outcome import RunOutcome

if TYPE_CHECKING:
    from dinocell.pretrain import PretrainConfig


def parse(arguments: Sequence[str]) -> PretrainConfig:
    """Config of a command line.

    Raises:
        ConfigError: an unknown option or key, or a wrong value.
    """
    from dinocell.pretrain import PretrainConfig

    return recipe_parse(PretrainConfig, "ssl", arguments)


def run(config: PretrainConfig) -> RunOutcome:
    """Train."""
    from dinocell import pretrain

    return pretrain.run(config)


SPEC = StageSpec(name="ssl", parse=parse, plan=recipe_plan, run=run)


def main(argv: Sequence[str] | None = None, description: str = "Stage 1: self-supervised training on crops.") -> int:
    """Run the command and return its exit code."""
    from dinocell.pretrain import PretrainConfig

    return recipe_main(PretrainConfig, "ssl", run, description, argv)
