"""Commands that can run as jobs: the one table of their specs, handed to `dinocell.cluster`."""

from __future__ import annotations

from dinocell.cli.train import curate, finetune, pretrain
from dinocell.cli.use import evaluate, segment
from dinocell.cluster.stages import Stages

STAGES: Stages = {spec.name: spec for spec in (pretrain.SPEC, finetune.SPEC, curate.SPEC, segment.SPEC, evaluate.SPEC)}
