"""A trained model, adapted to unlabelled images of another microscope, and judged."""

from dinocell.adapt.adaptation import run
from dinocell.adapt.config import AdaptConfig, make_config

__all__ = ["AdaptConfig", "make_config", "run"]
