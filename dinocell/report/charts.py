"""Line charts and bars as PNG bytes, drawn without pyplot so that no global backend or figure state is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#2f7ed8", "#e0762f", "#1f9d84", "#8a63d2", "#c9487f", "#b8961e", "#7d8590")
"""Series colours in order: distinguishable for colour-blind readers, and readable on white and on near-black."""

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name of the line → (x values, y values)."""

_WIDTH_IN, _HEIGHT_IN, _DPI = 5.4, 3.1, 190


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of the page the chart stands on."""

    text: str
    grid: str


LIGHT = Theme(text="#3a4048", grid="#e3e6ea")
DARK = Theme(text="#b9c0c9", grid="#343a42")


def line_chart(
    series: Series, *, title: str, xlabel: str, ylabel: str, log_y: bool = False, theme: Theme = LIGHT
) -> bytes:
    """Draw one line per series; points that are not finite leave a gap.

    Args:
        series: name → (xs, ys), both of one length.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.

    Returns:
        PNG bytes with a transparent background.

    Raises:
        ValueError: xs and ys of a series differ in length.
    """
    figure, axes = _axes(theme)
    for index, (name, (xs, ys)) in enumerate(series.items()):
        x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"series {name!r}: x has shape {x.shape}, y has shape {y.shape}; give two equal lists")
        # A long line of markers is a smear; a line of one point is invisible without one.
        axes.plot(
            x, y, color=_colour(index), linewidth=1.7, marker="o" if x.size <= 12 else "", markersize=3.5, label=name
        )
    if log_y:
        axes.set_yscale("log")
    _finish(axes, title, xlabel, ylabel, theme, legend=len(series) > 1)
    return _png(figure)


def bars(
    values: Mapping[str, float] | Mapping[str, Mapping[str, float]],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "",
    theme: Theme = LIGHT,
) -> bytes:
    """Draw one bar per value, or groups of bars, each with its number on top.

    Args:
        values: name → value, or group → {series → value}; in the grouped form all groups share one colour per series.
        ylabel: what the value is, with its unit.

    Returns:
        PNG bytes with a transparent background.
    """
    groups = list(values)
    nested = {
        group: {str(k): float(v) for k, v in value.items()} if isinstance(value, Mapping) else {"": float(value)}
        for group, value in values.items()
    }
    names = list(dict.fromkeys(name for group in nested.values() for name in group))
    figure, axes = _axes(theme)
    width = 0.72 / max(len(names), 1)
    for index, name in enumerate(names):
        x = np.arange(len(groups)) + (index - (len(names) - 1) / 2) * width
        heights = np.array([nested[group].get(name, np.nan) for group in groups])
        drawn = axes.bar(x, heights, width * 0.9, color=_colour(index), label=name)
        axes.bar_label(
            drawn, [f"{h:.3g}" if np.isfinite(h) else "" for h in heights], padding=2, fontsize=7.5, color=theme.text
        )
    crowded = sum(map(len, groups)) > 44
    axes.set_xticks(np.arange(len(groups)), groups, rotation=25 if crowded else 0, ha="right" if crowded else "center")
    _finish(axes, title, xlabel, ylabel, theme, legend=len(names) > 1)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    return _png(figure)


def histogram(
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    marks: Mapping[str, float] | None = None,
    bins: int = 24,
    theme: Theme = LIGHT,
) -> bytes:
    """Draw how values are spread: for each name the share of its values in each bin, in per cent.

    The axis ends at the largest value but a hundredth of any name's, so that one outlier does not flatten the rest;
    what is beyond is counted in the last bin.

    Args:
        xlabel: what the values are, with their unit.
        marks: name → value of vertical lines; those off the axis are left out.

    Returns:
        PNG bytes with a transparent background.
    """
    filled = {name: np.asarray(v, np.float64) for name, v in values.items() if len(v)}
    figure, axes = _axes(theme)
    low = min((float(v.min()) for v in filled.values()), default=0.0)
    high = max((float(np.percentile(v, 99)) for v in filled.values()), default=1.0)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for index, (name, v) in enumerate(filled.items()):
        share = 100 * np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / len(v)
        axes.stairs(share, edges, color=_colour(index), fill=True, alpha=0.22)
        axes.stairs(share, edges, color=_colour(index), linewidth=1.6, label=name)
    for name, value in (marks or {}).items():
        if edges[0] <= value <= edges[-1]:
            axes.axvline(value, color=theme.text, linewidth=1.0, linestyle=":")
            axes.annotate(
                name,
                (value, 0.98),
                xycoords=axes.get_xaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=theme.text,
            )
    _finish(axes, title, xlabel, "share (%)", theme, legend=len(filled) > 1)
    axes.set_ylim(bottom=0)
    return _png(figure)


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _axes(theme: Theme) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as AggFigure

    figure = AggFigure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.grid(color=theme.grid, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    axes.tick_params(length=0, colors=theme.text, labelsize=9)
    return figure, axes


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str, theme: Theme, *, legend: bool) -> None:
    axes.set_xlabel(xlabel, color=theme.text, fontsize=9.5)
    axes.set_ylabel(ylabel, color=theme.text, fontsize=9.5)
    axes.set_title(title, color=theme.text, fontsize=10.5, loc="left", fontweight="bold")
    if legend:
        # Below the axes it covers no data, however the lines run.
        handles, names = axes.get_legend_handles_labels()
        columns = min(len(names), 3)
        axes.figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            labelcolor=theme.text,
            fontsize=8.5,
        )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()
