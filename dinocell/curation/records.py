"""Records of curation: what one file gave, as the journal stores it, and the folders of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dinocell.curation.manifest import Row

STATE = ".curation"
CROPS = "crops"
SET_ASIDE = "set_aside"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A future row of the tables, with the thumbnails for duplicate detection and for the contact sheet.

    Attributes:
        row: of manifest.csv or rejected.csv.
        small: thumbnail of a kept crop as text.
        picture: JPEG for the contact sheet, until the journal has stored it.
        sheet: its place in the journal's files.
    """

    row: Row
    small: str = ""
    picture: bytes = b""
    sheet: str = ""


def to_record(found: Found, sheet: str) -> dict[str, Any]:
    """Convert to plain values for the journal; `sheet` is the place of the contact sheet's image."""
    return {"row": vars(found.row), "small": found.small, "sheet": sheet}


def from_record(record: list[dict[str, Any]]) -> list[Found]:
    """Invert `to_record`."""
    return [Found(row=Row(**item["row"]), small=item["small"], sheet=item["sheet"]) for item in record]
