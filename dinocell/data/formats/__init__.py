"""Published labelled data sets → DATASET/{train,val,test}/{images,masks} with a report of what was refused."""

from dinocell.data.formats.cli import main
from dinocell.data.formats.config import PrepareConfig
from dinocell.data.formats.prepare import prepare

__all__ = ["PrepareConfig", "main", "prepare"]
