"""Published labelled datasets → DATASET/{train,val,test}/{images,masks} with a report of what was refused."""

from dinocell.datasets.prepare.config import PrepareConfig
from dinocell.datasets.prepare.convert import prepare

__all__ = ["PrepareConfig", "prepare"]
