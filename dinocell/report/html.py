"""One self-contained HTML page: text, tables, images and charts, readable on a phone, in light and in dark.

Pictures are embedded as base64 PNG, so the file can be mailed or opened from a cluster's storage without anything else.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.images.geometry.resize import resize_image
from dinocell.report import charts
from dinocell.report.overlays import to_rgb
from dinocell.report.style import CSS

Picture = NDArray[np.generic] | bytes | str | Path
"""An image array (H, W) or (H, W, 3|4) of any dtype, PNG or JPEG bytes, or the path of such a file."""

_MAX_PICTURE_SIDE = 1024


class Report:
    """Builds a page from top to bottom; each method appends one block.

    Text is escaped; between `backticks` it is set as code.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._blocks: list[str] = []
        self._sections: list[tuple[str, str]] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Start a section (level 2, listed in the contents) or a sub-section (level 3)."""
        if level not in (2, 3):
            raise ValueError(f"heading level is {level}; 2 (section) and 3 (sub-section) exist")
        anchor = f"s{len(self._blocks)}"
        if level == 2:
            self._sections.append((anchor, text))
        self._blocks.append(f'<h{level} id="{anchor}">{_inline(text)}</h{level}>')

    def text(self, text: str) -> None:
        """Append paragraphs; an empty line in `text` starts a new one."""
        self._blocks.extend(f"<p>{_inline(part.strip())}</p>" for part in text.split("\n\n") if part.strip())

    def code(self, text: str) -> None:
        """Append a block of commands or configuration, set as it is."""
        self._blocks.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def figures(self, values: Mapping[str, object]) -> None:
        """Append a row of key figures: name → value, the value set large."""
        tiles = "".join(
            f'<div class="tile"><div class="value">{html.escape(_cell(value))}</div>'
            f'<div class="name">{_inline(name)}</div></div>'
            for name, value in values.items()
        )
        self._blocks.append(f'<div class="tiles">{tiles}</div>')

    def table(self, rows: Sequence[Sequence[object]], header: Sequence[str], caption: str = "") -> None:
        """Append a table that scrolls sideways on its own when the screen is narrow.

        Args:
            rows: cells of each row; floats are shown with three decimals, columns of numbers are right-aligned.
            header: one name per column.

        Raises:
            ValueError: a row's length is not the header's.
        """
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"table row {number} has {len(row)} cells; the header has {len(header)}")
        numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
        style = [' class="n"' if n else "" for n in numeric]
        head = "".join(f"<th{s}>{_inline(name)}</th>" for s, name in zip(style, header, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{s}>{_inline(_cell(value))}</td>" for s, value in zip(style, row, strict=True))
            + "</tr>"
            for row in rows
        )
        title = f"<caption>{_inline(caption)}</caption>" if caption else ""
        table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._blocks.append(f'<div class="scroll" tabindex="0">{table}</div>')

    def image(self, picture: Picture, caption: str = "") -> None:
        """Append one image, at most as wide as the page; sides beyond 1,024 px are scaled down."""
        self._blocks.append(_figure(_img(_data_uri(picture), caption), caption))

    def gallery(self, pictures: Sequence[tuple[Picture, str]], caption: str = "") -> None:
        """Append images with captions side by side, wrapping where the screen is narrow."""
        cells = "".join(_figure(_img(_data_uri(picture), text), text) for picture, text in pictures)
        note = f"<p class='note'>{_inline(caption)}</p>" if caption else ""
        self._blocks.append(f'<div class="gallery">{cells}</div>{note}')

    def line_chart(
        self, series: charts.Series, title: str, xlabel: str, ylabel: str, caption: str = "", *, log_y: bool = False
    ) -> None:
        """Append a line chart of name → (xs, ys); put the units into the labels."""
        light, dark = (
            charts.line_chart(series, title=title, xlabel=xlabel, ylabel=ylabel, log_y=log_y, theme=theme)
            for theme in (charts.LIGHT, charts.DARK)
        )
        self._chart(light, dark, title, caption)

    def bars(
        self,
        values: Mapping[str, float] | Mapping[str, Mapping[str, float]],
        title: str,
        ylabel: str,
        xlabel: str = "",
        caption: str = "",
    ) -> None:
        """Append bars of name → value, or groups of bars: group → {series → value}."""
        light, dark = (
            charts.bars(values, title=title, ylabel=ylabel, xlabel=xlabel, theme=theme)
            for theme in (charts.LIGHT, charts.DARK)
        )
        self._chart(light, dark, title, caption)

    def histogram(
        self,
        values: Mapping[str, Sequence[float]],
        title: str,
        xlabel: str,
        caption: str = "",
        *,
        marks: Mapping[str, float] | None = None,
    ) -> None:
        """Append a histogram of name → values, in per cent of each name's values; `marks` are named vertical lines."""
        light, dark = (
            charts.histogram(values, title=title, xlabel=xlabel, marks=marks, theme=theme)
            for theme in (charts.LIGHT, charts.DARK)
        )
        self._chart(light, dark, title, caption)

    def to_html(self) -> str:
        """The whole page as one string."""
        contents = "".join(f'<a href="#{anchor}">{html.escape(text)}</a>' for anchor, text in self._sections)
        nav = f"<nav>{contents}</nav>" if len(self._sections) > 2 else ""
        subtitle = f'<p class="subtitle">{_inline(self._subtitle)}</p>' if self._subtitle else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{html.escape(self._title)}</title>'
            f"<style>{CSS}</style></head>\n<body><main><header><h1>{_inline(self._title)}</h1>{subtitle}</header>{nav}\n"
            + "\n".join(self._blocks)
            + "\n</main></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, creating parent folders; returns the path written."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.to_html(), encoding="utf-8")
        return target

    def _chart(self, light: bytes, dark: bytes, title: str, caption: str) -> None:
        # Text and grid of a bitmap cannot follow the page's colours, so the browser picks one of two.
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        picture = f"<picture>{source}{_img(_data_uri(light), title)}</picture>"
        self._blocks.append(f'<div class="chart">{_figure(picture, caption)}</div>')


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not np.isfinite(number):
            return "–" if np.isnan(number) else str(number)
        return f"{number:.3f}" if number == 0 or 1e-3 <= abs(number) < 1e4 else f"{number:.3g}"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{int(value):,}"
    return str(value)


def _figure(content: str, caption: str) -> str:
    note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{note}</figure>"


def _img(uri: str, alt: str) -> str:
    return f'<img src="{uri}" alt="{html.escape(alt, quote=True)}">'


def _data_uri(picture: Picture) -> str:
    content = picture if isinstance(picture, bytes) else None
    if isinstance(picture, (str, Path)):
        content = Path(picture).read_bytes()
    elif isinstance(picture, np.ndarray):
        content = _encode(picture)
    assert content is not None
    if content.startswith(b"\x89PNG"):
        kind = "png"
    elif content.startswith(b"\xff\xd8"):
        kind = "jpeg"
    else:
        raise ValueError(
            "an image given as a file or bytes must be PNG or JPEG; read other formats into an array first"
        )
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encode(array: NDArray[np.generic]) -> bytes:
    rgb = to_rgb(array)
    scale = _MAX_PICTURE_SIDE / max(rgb.shape[:2])
    if scale < 1:
        rgb = resize_image(rgb, (max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))))
    ok, encoded = cv2.imencode(".png", rgb[..., ::-1])
    assert ok
    return bytes(encoded)
