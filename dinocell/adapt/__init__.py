"""A trained model, adapted to unlabelled images of another microscope: both stages, and whether it helped."""

from dinocell.adapt.cli import main, parse
from dinocell.adapt.config import AdaptConfig, make_config
from dinocell.adapt.run import run

__all__ = ["AdaptConfig", "main", "make_config", "parse", "run"]
