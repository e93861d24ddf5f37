"""Notes: sentences about a result for its user, each with its severity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dinocell.core import log

Severity = Literal["info", "warning"]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence about a result; programs read the severity, never the words.

    Attributes:
        text: one line.
        severity: `info` says what was done as usual, `warning` asks the user to look.
    """

    text: str
    severity: Severity

    def __str__(self) -> str:
        return self.text


CONSTANT = Note(text="the image is constant: no cells", severity="warning")


def severity_of(notes: Iterable[Note]) -> Severity:
    """The most severe among the notes' severities; `info` if there are none."""
    return "warning" if any(note.severity == "warning" for note in notes) else "info"


def tell(text: str, severity: Severity) -> None:
    """Print a line for the user: routine to standard output, a warning to standard error."""
    match severity:
        case "info":
            log.info(text)
        case "warning":
            log.warning(text)
