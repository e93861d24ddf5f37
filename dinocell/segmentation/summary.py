"""Summary of a run: the outcome of every plane, in summary.csv and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from dinocell.core import log
from dinocell.core.errors import first_line
from dinocell.core.files import atomic_write_text
from dinocell.segmentation.notes import Note, severity_of, tell
from dinocell.segmentation.result import SegmentationResult

SUMMARY_NAME = "summary.csv"
Status = Literal["done", "skipped", "failed"]


class Row(TypedDict):
    """Columns of summary.csv; `cells` is empty where nothing was segmented."""

    image: str
    plane: str
    stem: str
    status: str
    cells: str
    note: str


COLUMNS = tuple(Row.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One plane of a run, or a whole file whose planes are not known yet.

    Attributes:
        file: the image.
        stem: start of the names of its results.
        plane: "" for a plain image, else its name in the stack, such as "t003".
        last: no other plane of the file follows.
    """

    file: Path
    stem: str
    plane: str = ""
    last: bool = True

    def of_plane(self, name: str, *, last: bool) -> Target:
        """Name one plane of this file."""
        stem = f"{self.stem}_{name}" if name else self.stem
        return Target(file=self.file, stem=stem, plane=name, last=last)

    def done(self, result: SegmentationResult) -> Outcome:
        """Give the outcome of a plane whose results are on disk."""
        return Outcome(target=self, status="done", cells=result.count, notes=result.notes)

    def skipped(self) -> Outcome:
        """Give the outcome of a plane whose results were there already."""
        return Outcome(target=self, status="skipped")

    def failed(self, error: Exception) -> Outcome:
        """Give the outcome of what could not be read, segmented or written."""
        note = Note(text=first_line(error, named=True), severity="warning")
        return Outcome(target=self, status="failed", notes=(note,))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one plane, or of a file that could not be read.

    Attributes:
        target: the plane or file.
        status: `done`, `skipped` or `failed`.
        cells: their number; None where nothing was segmented in this run.
        notes: why it failed, or what the user should know of the result.
    """

    target: Target
    status: Status
    cells: int | None = None
    notes: tuple[Note, ...] = ()

    @property
    def reason(self) -> str:
        """The notes in one line."""
        return "; ".join(note.text for note in self.notes)

    @property
    def row(self) -> Row:
        """Its line of summary.csv."""
        return Row(
            image=str(self.target.file),
            plane=self.target.plane,
            stem=self.target.stem,
            status=self.status,
            cells="" if self.cells is None else str(self.cells),
            note=self.reason,
        )

    def tell(self) -> None:
        """Print the notes, if any, with the file and the plane they are about."""
        if self.notes:
            where = f"{self.target.file}{' ' + self.target.plane if self.target.plane else ''}"
            tell(f"{where}: {'failed: ' if self.status == 'failed' else ''}{self._said}", severity_of(self.notes))

    @property
    def _said(self) -> str:
        """The reason without the file's name, which readers put in front of theirs."""
        return self.reason.removeprefix(f"{self.target.file}: ")


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Outcomes of a run.

    Attributes:
        outcomes: one per plane, and one for each file that could not be read.
        seconds: wall time of the run without loading the model.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The planes and files that could not be segmented."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def cells(self) -> int:
        """Cells found in this run."""
        return sum(outcome.cells or 0 for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 when nothing failed, else 1."""
        return 1 if self.failed else 0

    def count(self, status: Status) -> int:
        """Count the planes with a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def write(self, path: Path) -> None:
        """Write summary.csv."""
        write_rows(path, [outcome.row for outcome in self.outcomes])

    def tell(self, out: Path) -> None:
        """Print what was done, and every failure again, since those above have scrolled away."""
        done, skipped = self.count("done"), self.count("skipped")
        rate = f" ({done / self.seconds:.3g} images/s)" if done and self.seconds else ""
        kept = f", {skipped} skipped: their results are there" if skipped else ""
        took = log.format_duration(self.seconds)
        log.info(f"{done} segmented, {self.cells:,} cells in {took}{rate}{kept} → {out}")
        if self.failed:
            log.warning(f"{len(self.failed)} failed:")
            for outcome in self.failed:
                log.warning(f"  {outcome.target.file}: {outcome._said}")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a summary whole or not at all, its folder made if absent."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Read a summary."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**line) for line in csv.DictReader(file)]  # type: ignore[typeddict-item]
