"""Units of length that image files name."""

from __future__ import annotations

MICRONS: dict[str, float] = {
    "micrometer": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "\u00b5m": 1.0,  # the micro sign, as in OME-XML
    "\u03bcm": 1.0,  # the Greek letter, which looks the same
    "nanometer": 1e-3,
    "nm": 1e-3,
    "millimeter": 1e3,
    "mm": 1e3,
}
"""µm per unit; a unit that is not listed leaves the pixel size unknown."""
