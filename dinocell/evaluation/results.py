"""Results of an evaluation, image by image, and their summary as JSON, CSV and text."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinocell.evaluation.published import published_for
from dinocell.metrics import METRICS, ImageScores, difference_intervals, macro_mean, pool

AVERAGING = (
    "metrics = metrics_pooled and metrics_ignore_masked = metrics_ignore_masked_pooled: counts summed over all images, "
    "as the Cell Tracking Challenge programs do; *_macro: mean of the images' own scores"
)

FEWEST_FOR_INTERVALS = 5
"""Images: resampling fewer says nothing about others."""


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One image scored for one tool.

    Attributes:
        tool: name of what predicted. dataset, image: of the label image.
        raw: scores over all pixels. masked: scores without ignored pixels (equal to `raw` where nothing is ignored).
        ignoring: what `masked` left out: "nothing", "ignore image" or "unlabelled pixels".
        truth, prediction: label images. ignore, picture: the ignore image and the microscope image, where known.
    """

    tool: str
    dataset: str
    image: str
    raw: ImageScores
    masked: ImageScores
    ignoring: str
    truth: Path
    prediction: Path
    ignore: Path | None = None
    picture: Path | None = None

    @property
    def title(self) -> str:
        """DATASET/IMAGE."""
        return f"{self.dataset}/{self.image}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of every tool on every image, with one sentence for each image that could not be scored as asked."""

    tools: tuple[str, ...]
    expected: int
    results: tuple[ImageResult, ...]
    problems: tuple[str, ...]

    def of(self, tool: str, dataset: str | None = None) -> list[ImageResult]:
        """Results of one tool, on one dataset or on all."""
        return [r for r in self.results if r.tool == tool and dataset in (None, r.dataset)]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, sorted."""
        return sorted({result.dataset for result in self.results})

    @property
    def common(self) -> set[str]:
        """Titles of the images that every tool was scored on."""
        return set.intersection(*({r.title for r in self.of(tool)} for tool in self.tools))


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json; the figures at the top are the first tool's (see docs/metrics.md)."""
    tools = {tool: _of_tool(evaluation, tool) for tool in evaluation.tools}
    summary: dict[str, Any] = dict(tools[evaluation.tools[0]])
    summary["averaging"] = AVERAGING
    summary["images_with_labels"] = evaluation.expected
    summary["problems"] = list(evaluation.problems)
    summary["predictions"] = tools
    if any(len(evaluation.of(tool)) != len(evaluation.common) for tool in evaluation.tools):
        common = evaluation.common
        summary["images_common_to_all"] = len(common)
        summary["predictions_on_common_images"] = {
            tool: _block([r for r in evaluation.of(tool) if r.title in common]) for tool in evaluation.tools if common
        }
    summary["differences"] = _differences(evaluation)
    published = {name: found for name in evaluation.datasets if (found := published_for(name))}
    summary["paper"] = {name: {"published_as": found[0], **found[1]} for name, found in published.items()}
    return summary


def _differences(evaluation: Evaluation) -> dict[str, Any]:
    """The first tool minus each other one on the images of both: value and 95 % bootstrap interval over the images."""
    first, *others = evaluation.tools
    own = {result.title: result.raw for result in evaluation.of(first)}
    found: dict[str, Any] = {}
    for tool in others:
        pairs = [(result.raw, own[result.title]) for result in evaluation.of(tool) if result.title in own]
        if len(pairs) < FEWEST_FOR_INTERVALS:
            continue
        intervals = difference_intervals(*([scores] for scores in zip(*pairs, strict=True)))
        found[f"{first} − {tool}"] = {"images": len(pairs)} | {
            mean: {name: [value.value, value.low, value.high] for name, value in rows.items()}
            for mean, rows in intervals.items()
        }
    return found


def _of_tool(evaluation: Evaluation, tool: str) -> dict[str, Any]:
    block = _block(evaluation.of(tool))
    block["datasets"] = {name: _block(rows) for name in evaluation.datasets if (rows := evaluation.of(tool, name))}
    return block


def _block(results: Sequence[ImageResult]) -> dict[str, Any]:
    """Summary of some results of one tool (at least one)."""
    raw, masked = [r.raw for r in results], [r.masked for r in results]
    total = pool(raw)
    return {
        "images": len(results),
        "metrics": total.metrics(),
        "metrics_ignore_masked": pool(masked).metrics(),
        "metrics_pooled": total.metrics(),
        "metrics_macro": macro_mean(raw),
        "metrics_ignore_masked_pooled": pool(masked).metrics(),
        "metrics_ignore_masked_macro": macro_mean(masked),
        "ignored": {what: sum(r.ignoring == what for r in results) for what in ("ignore image", "unlabelled pixels")},
        "objects": {
            "truth": total.n_truth,
            "predicted": total.n_predictions,
            "count_error": total.count_error,
            "mean_absolute_count_error_per_image": total.absolute_count_error / len(results),
            "mean_matched_iou": total.mean_matched_iou,
        },
        "foreground": total.foreground_metrics(),
    }


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """One row for each tool and image: counts, raw metrics, ignore-masked metrics, foreground metrics."""
    rows = [_row(result) for result in evaluation.results]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _row(result: ImageResult) -> dict[str, object]:
    raw = result.raw
    row: dict[str, object] = {"tool": result.tool, "dataset": result.dataset, "image": result.image}
    row |= {"n_truth": raw.n_truth, "n_predictions": raw.n_predictions, "count_error": raw.count_error}
    row |= _rounded(raw.metrics()) | {"mean_matched_iou": round(raw.mean_matched_iou, 6)}
    row |= _rounded(result.masked.metrics(), lambda name: f"{name}_ignore_masked") | {"ignoring": result.ignoring}
    return row | _rounded(raw.foreground_metrics(), lambda name: f"foreground_{name}")


def _rounded(values: dict[str, float], rename: Callable[[str], str] = str) -> dict[str, object]:
    return {rename(name): round(value, 6) for name, value in values.items()}


HEADER = ("predictions", "dataset", "images", "scores", "mean", *METRICS)


def table_rows(summary: dict[str, Any]) -> list[list[object]]:
    """Rows under HEADER for every tool, in total and by dataset: raw then masked, pooled then macro.

    Masked rows are left out where nothing is ignored: they would repeat the raw ones.
    """
    rows = []
    for tool, block in summary["predictions"].items():
        parts = {"all": block} if len(block["datasets"]) > 1 else {}
        for dataset, part in (parts | block["datasets"]).items():
            kinds = {"raw": ("metrics_pooled", "metrics_macro")}
            if any(part["ignored"].values()):
                kinds["ignore-masked"] = ("metrics_ignore_masked_pooled", "metrics_ignore_masked_macro")
            for kind, keys in kinds.items():
                for mean, key in zip(("pooled", "macro"), keys, strict=True):
                    rows.append([tool, dataset, part["images"], kind, mean, *(part[key][name] for name in METRICS)])
    return rows


def format_table(summary: dict[str, Any]) -> str:
    """The table as text with aligned columns, the paper's figures below where it has the dataset."""
    cells = [list(HEADER)] + [
        [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row] for row in table_rows(summary)
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    for pair, found in summary["differences"].items():
        for mean in ("pooled", "macro"):
            values = ", ".join(
                f"{name} {v:+.3f} [{low:+.3f}, {high:+.3f}]" for name, (v, low, high) in found[mean].items()
            )
            lines.append(f"{pair}, {found['images']} images, {mean}: {values}")
    for dataset, published in summary["paper"].items():
        for model, figures in published.items():
            if isinstance(figures, dict):
                values = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
                lines.append(f"published for {published['published_as']} ({dataset}): {model}: {values}")
    return "\n".join(lines)
