"""report.html of an evaluation: tables, bars, per-image histograms, the best and worst images with their errors."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.core.errors import DinoCellError
from dinocell.evaluation.reading import read_label_image
from dinocell.evaluation.results import HEADER, Evaluation, ImageResult, table_rows
from dinocell.images.read import read_image
from dinocell.metrics import METRICS
from dinocell.report.html import Report
from dinocell.report.overlays import error_map, overlay, panel

_SHOWN = 3  # best and worst images of each tool
_FEWEST_FOR_HISTOGRAM = 5  # images; fewer are read off per_image.csv
_BINS = np.linspace(0, 1, 11)


def write_report(evaluation: Evaluation, summary: dict[str, Any], path: Path) -> None:
    """Write the page; the images themselves are read again, only those it shows."""
    report = Report("Segmentation scores", f"{', '.join(evaluation.tools)} on {', '.join(evaluation.datasets)}")
    _scores(report, summary)
    _published(report, evaluation, summary)
    _charts(report, evaluation, summary)
    for tool in evaluation.tools:
        _examples(report, evaluation.of(tool), tool)
    if evaluation.problems:
        report.heading("Not scored, or not as asked")
        report.table([[line] for line in evaluation.problems], ["problem"])
    report.write(path)


def _scores(report: Report, summary: dict[str, Any]) -> None:
    report.heading("Scores")
    report.figures({name: summary["metrics"][name] for name in ("SEG", "DET", "MMA", "AP50")})
    report.text(
        f"{summary['images']} of {summary['images_with_labels']} images. Pooled: counts summed over all images (the "
        "headline, as the Cell Tracking Challenge does). Macro: mean of the images' own scores. Raw scores count every "
        "pixel; ignore-masked ones leave ignored pixels out, which hides false positives there: read them beside the "
        "raw ones, never in their place."
    )
    report.table(table_rows(summary), HEADER)
    if "predictions_on_common_images" in summary:
        blocks = summary["predictions_on_common_images"]
        rows = [[tool, block["images"], *block["metrics"].values()] for tool, block in blocks.items()]
        caption = "Compare the tools here: only images that each of them was scored on (raw, pooled)"
        report.table(rows, ["predictions", "images", *METRICS], caption)
    rows = [
        [tool, *block["objects"].values(), *block["foreground"].values()]
        for tool, block in summary["predictions"].items()
    ]
    first = next(iter(summary["predictions"].values()))
    names = [name.replace("_", " ") for name in (*first["objects"], *first["foreground"])]
    report.table(rows, ["predictions", *names], "Counts of objects, and foreground against background by pixel")


def _published(report: Report, evaluation: Evaluation, summary: dict[str, Any]) -> None:
    if not summary["paper"]:
        return
    report.heading("Beside the published figures")
    report.text("The paper scored all models with ignore masking. Split and averaging may differ from those here.")
    for dataset, published in summary["paper"].items():
        models = {model: figures for model, figures in published.items() if isinstance(figures, dict)}
        names = list(next(iter(models.values())))
        rows: list[list[object]] = [[f"{m} (published)", *(f[n] for n in names)] for m, f in models.items()]
        for tool in evaluation.tools:
            block = summary["predictions"][tool]["datasets"].get(dataset)
            if block is None:
                continue
            for kind, key in (("raw", "metrics"), ("ignore-masked", "metrics_ignore_masked")):
                values = block[key] | block["foreground"]
                if kind == "raw" or any(block["ignored"].values()):
                    rows.append([f"{tool} ({kind}, pooled)", *(values[name] for name in names)])
        report.table(rows, ["model", *names], f"{published['published_as']} ({dataset})")


def _charts(report: Report, evaluation: Evaluation, summary: dict[str, Any]) -> None:
    report.heading("Charts")
    blocks = summary["predictions"]
    grouped = {name: {tool: block["metrics"][name] for tool, block in blocks.items()} for name in METRICS}
    report.bars(grouped, "All images, raw, pooled", "score (0–1)")
    if len(evaluation.datasets) > 1:
        by_dataset = {
            name: {t: b["datasets"][name]["metrics"]["MMA"] for t, b in blocks.items() if name in b["datasets"]}
            for name in evaluation.datasets
        }
        report.bars(by_dataset, "MMA by dataset, raw, pooled", "MMA (0–1)")
    if max(len(evaluation.of(tool)) for tool in evaluation.tools) < _FEWEST_FOR_HISTOGRAM:
        return
    for metric in ("MMA", "SEG", "AP50"):
        counts = {tool: _histogram(evaluation.of(tool), metric) for tool in evaluation.tools}
        bins = {
            f"{low:.1f}": {tool: float(count[index]) for tool, count in counts.items()}
            for index, low in enumerate(_BINS[:-1])
        }
        report.bars(bins, f"{metric} of each image", "images", f"{metric}, bins of 0.1 from")


def _histogram(results: list[ImageResult], metric: str) -> NDArray[np.int64]:
    # A score of exactly 0.3 must fall into the bin from 0.3 although 0.3 has no exact float.
    return np.histogram([r.raw.metrics()[metric] + 1e-9 for r in results], np.append(_BINS[:-1], np.inf))[0]


def _examples(report: Report, results: list[ImageResult], tool: str) -> None:
    """Worst and best images by MMA, with truth, prediction and errors."""
    ranked = sorted(results, key=lambda result: result.raw.mma)
    worst = ranked[: min(_SHOWN, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][::-1][:_SHOWN]
    for title, chosen in (("Worst", worst), ("Best", best)):
        if not chosen:
            continue
        report.heading(f"{title} images of {tool}")
        report.text("By MMA. Errors: green in both, red only predicted, blue only in the truth.")
        for result in chosen:
            values = result.raw.metrics()
            scores = ", ".join(f"{name} {values[name]:.3f}" for name in ("MMA", "SEG", "DET", "AP50"))
            counts = f"{result.raw.n_predictions} objects predicted, {result.raw.n_truth} in the truth"
            report.image(_panel(result), f"{result.title}: {scores}; {counts}")


def _panel(result: ImageResult) -> NDArray[np.uint8]:
    truth, predicted = read_label_image(result.truth), read_label_image(result.prediction)
    picture = _picture(result, truth)
    background = np.zeros(truth.shape, np.uint8) if picture is None else picture
    fill = 0.45 if picture is None else 0.0
    tiles = [overlay(background, truth, fill=fill), overlay(background, predicted, fill=fill)]
    titles = ["truth", "prediction", "errors"]
    return panel([*tiles, error_map(truth, predicted, picture)], titles)


def _picture(result: ImageResult, truth: NDArray[np.int32]) -> NDArray[Any] | None:
    """The microscope image where it can be shown: (H, W) or (H, W, 3|4) of the truth's size."""
    if result.picture is None:
        return None
    try:
        array = np.squeeze(read_image(result.picture).array)
    except DinoCellError:
        return None
    if array.ndim == 3 and array.shape[1:] == truth.shape:
        array = array.max(axis=0)  # channels or slices: the report only has to be recognisable
    if array.shape[:2] != truth.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        return None
    return array
