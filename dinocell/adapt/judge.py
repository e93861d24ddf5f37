"""Did it help? Scores against labels, or, without any, how stable the segmentation is; and what follows in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dinocell.core import log
from dinocell.datasets.labelled import LabelledItem
from dinocell.images.geometry.symmetry import Turn
from dinocell.images.gray.channels import to_gray
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.metrics import ImageScores, Interval, difference_intervals, pool, score_image, score_intervals
from dinocell.segmentation import SegmentationResult

Gray = NDArray[Any]
Labels = NDArray[Any]
Choice = Literal["original", "adapted", "control"]

METRIC = "MMA"
SHOWN = ("MMA", "SEG", "DET", "AP50")
MIN_IMAGES = 4  # fewer say nothing about the next image
MIN_STEADIER = 0.01  # gain in stability that is worth a change of model
MIN_AGREEMENT = 0.5  # MMA with the original below which a model without labels to check it is not trusted
COUNT_RANGE = (0.67, 1.5)  # cells found ÷ cells the original found, likewise


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Verdict: the model to use, if stage 1 helped, and why.

    `helped` is None where the images at hand do not decide it.
    """

    choice: Choice
    helped: bool | None
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Stability:
    """A model on the check images: scores of its labels under small changes of the image against its own labels,
    one row per image, and its labels against the original model's."""

    changes: tuple[ImageScores, ...]
    agreement: tuple[ImageScores, ...]

    @property
    def cells(self) -> int:
        """Cells found."""
        return sum(score.n_predictions for score in self.agreement)


class Segments(Protocol):
    """Anything that segments one image."""

    def segment(self, image: Any, /) -> SegmentationResult:
        """Labels and more of an image."""


def changed_images(gray: Gray, seed: int) -> dict[str, tuple[Gray, Callable[[Labels], Labels]]]:
    """Make small changes that leave every cell in its place: name → (changed image, how to undo it on labels)."""
    image = gray.astype(np.float32)
    low, span = float(image.min()), max(float(np.ptp(image)), 1e-6)
    noise = np.random.default_rng(seed).standard_normal(gray.shape, dtype=np.float32)
    gamma = low + span * ((image - low) / span) ** 1.3

    quarter, mirror = Turn.of(quarters=1), Turn.of(flip_x=True)

    def same(labels: Labels) -> Labels:
        return labels

    return {
        "turned": (quarter.apply(image), quarter.undo),
        "mirrored": (mirror.apply(image), mirror.undo),
        "darker": (gamma, same),
        "noisier": (image + np.float32(0.1 * image.std()) * noise, same),
        "softer": (np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8)), same),
    }


def stability(model: Segments, images: Sequence[Gray], original: Sequence[Labels]) -> Stability:
    """Segment every image as it is and under small changes."""
    changes, agreement = [], []
    for number, gray in enumerate(log.progress(images, "stability", total=len(images))):
        own = model.segment(gray).labels
        agreement.append(score_image(original[number], own))
        rows = [score_image(own, undo(model.segment(c).labels)) for c, undo in changed_images(gray, number).values()]
        changes.append(pool(rows))
    return Stability(changes=tuple(changes), agreement=tuple(agreement))


def score_items(model: Segments, items: Sequence[LabelledItem], name: str) -> list[ImageScores]:
    """Scores of the model on labelled images, ignored pixels left out."""
    rows = []
    for item in log.progress(items, f"scoring the {name} model", total=len(items)):
        ignore = to_gray(read_image(item.ignore)) if item.ignore is not None else None
        rows.append(score_image(read_labels(item.mask), model.segment(item.image).labels, ignore))
    return rows


def judge_stability(original: Stability, adapted: Stability) -> tuple[Verdict, Mapping[str, Interval]]:
    """Without labels: more stable, yet not another segmentation, is a sign of help; nothing here is a proof."""
    change = difference_intervals([original.changes], [adapted.changes])["pooled"]
    agreement = pool(adapted.agreement).metrics()[METRIC]
    ratio = adapted.cells / max(original.cells, 1)
    gain = change[METRIC]
    numbers = (
        f"Stability under small changes of the image ({METRIC} of the labels with themselves) changed by "
        f"{_signed(gain)}; the adapted model's labels agree with the original's to {METRIC} {agreement:.3f}, with "
        f"{ratio:.2f} times as many cells."
    )
    strange = agreement < MIN_AGREEMENT or not COUNT_RANGE[0] <= ratio <= COUNT_RANGE[1]
    enough = len(original.changes) >= MIN_IMAGES
    if enough and gain.low > 0 and gain.value >= MIN_STEADIER and not strange:
        signs = (
            "There are signs that it helped: the segmentation is steadier and otherwise much the same. Without labels "
            "this is not a proof. Look at the figures, or label a few images and give them with `--labels`."
        )
        return Verdict(choice="adapted", helped=None, sentences=(numbers, signs)), change
    if strange:
        words = "It did not help: the adapted model sees something else in these images than the original did."
    elif enough and gain.high < 0:
        words = "It did not help: the segmentation is less steady than before."
    else:
        words = f"No help can be seen on {len(original.changes)} images: the segmentation is about as steady as before."
    helped = False if strange or (enough and gain.high < 0) else None
    return Verdict(choice="original", helped=helped, sentences=(numbers, words, "Use the original model.")), change


def judge_scores(rows: Mapping[str, Sequence[ImageScores]]) -> tuple[Verdict, Mapping[str, Mapping[str, Interval]]]:
    """With labels: `original`, `adapted` and, where it was trained, `control` → scores of the same images in order.

    Returns:
        The verdict, and for each other model its difference from `adapted` (adapted − other), pooled.
    """
    pooled = {name: pool(scores).metrics()[METRIC] for name, scores in rows.items()}
    others = [name for name in rows if name != "adapted"]
    change = {name: difference_intervals([rows[name]], [rows["adapted"]])["pooled"] for name in others}
    rival = "control" if "control" in rows else "original"
    gain = change[rival][METRIC]
    than = {"control": "the unadapted model trained on the same labels", "original": "the original model"}[rival]
    words = [f"{METRIC} of the adapted model against {than}: {_signed(gain)} on {len(rows['adapted'])} images."]
    enough = len(rows["adapted"]) >= MIN_IMAGES
    helped = None if not enough or gain.low <= 0 <= gain.high else gain.low > 0
    words.append(
        {
            True: "Stage 1 on your images helped.",
            False: "Stage 1 on your images did not help: it made the model worse.",
            None: "These images do not show if stage 1 helped"
            + (": the interval contains zero." if enough else f": fewer than {MIN_IMAGES} are too few."),
        }[helped]
    )
    choice = _best(pooled, change, rows, helped)
    words.append(
        {
            "adapted": "Use the adapted model.",
            "control": "Use the model that was trained on your labels without stage 1 (`control`).",
            "original": "Use the original model: nothing trained here is better beyond doubt.",
        }[choice]
    )
    return Verdict(choice=choice, helped=helped, sentences=tuple(words)), change


def judge_control(original: Sequence[ImageScores], control: Sequence[ImageScores]) -> Verdict:
    """With labels where stage 1 left nothing to judge: whether training on the labels alone helped."""
    gain = difference_intervals([original], [control])["pooled"][METRIC]
    words = (
        f"{METRIC} of the model trained on your labels against the original: {_signed(gain)} on {len(control)} images."
    )
    if gain.low > 0 and len(control) >= MIN_IMAGES:
        return Verdict(choice="control", helped=False, sentences=(words, "Use the model trained on your labels."))
    return Verdict(choice="original", helped=False, sentences=(words, "Use the original model."))


def _best(
    pooled: Mapping[str, float],
    change: Mapping[str, Mapping[str, Interval]],
    rows: Mapping[str, Sequence[ImageScores]],
    helped: bool | None,
) -> Choice:
    """The adapted model only if nothing simpler does as well; a trained one only if it beats the original."""
    if len(rows["adapted"]) < MIN_IMAGES:
        return "original"
    if "control" in rows and not (helped and pooled["adapted"] > pooled["original"]):
        gain = difference_intervals([rows["original"]], [rows["control"]])["pooled"][METRIC]
        return "control" if gain.low > 0 else "original"
    return "adapted" if change["original"][METRIC].low > 0 else "original"


def table(rows: Mapping[str, Sequence[ImageScores]]) -> list[list[object]]:
    """Model, then each metric with its interval."""
    found: list[list[object]] = []
    for name, scores in rows.items():
        intervals = score_intervals([scores])["pooled"]
        found.append([name, *(str(intervals[metric]) for metric in SHOWN)])
    return found


def read_gray_images(paths: Sequence[Path]) -> list[Gray]:
    """Images as the gray planes that the model sees."""
    return [to_gray(read_image(path)) for path in paths]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
