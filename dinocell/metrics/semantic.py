"""Semantic scores: every pixel has a class; IoU, Dice, precision, recall and accuracy per class and image.

Edge rules: a class absent from both images scores 1, one that is in exactly one of them scores 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinocell.metrics.matching import IntArray


@dataclass(frozen=True, kw_only=True)
class SemanticScores:
    """Pixel counts per class, of one image or summed over several (see `pool_semantic`).

    Attributes:
        classes: class values, in the order of the counts.
        tp, fp, fn: [C] true positive, false positive and false negative pixels of each class.
        pixels: pixels compared.
    """

    classes: tuple[int, ...]
    tp: IntArray
    fp: IntArray
    fn: IntArray
    pixels: int

    def per_class(self) -> dict[int, dict[str, float]]:
        """IoU, Dice, precision, recall and accuracy (both classes of the one-against-rest decision) of each class."""
        return {value: self._of(index) for index, value in enumerate(self.classes)}

    def mean(self) -> dict[str, float]:
        """Mean over the classes present in either image, and the share of pixels whose class is right (accuracy)."""
        present = [i for i in range(len(self.classes)) if self.tp[i] + self.fp[i] + self.fn[i]]
        rows = [self._of(i) for i in present]
        names = ("IoU", "Dice", "precision", "recall")
        means = {name: float(np.mean([row[name] for row in rows])) if rows else 1.0 for name in names}
        right = int(self.tp.sum()) / self.pixels if self.pixels else 1.0
        return means | {"accuracy": right}

    def _of(self, index: int) -> dict[str, float]:
        tp, fp, fn = int(self.tp[index]), int(self.fp[index]), int(self.fn[index])
        absent = 1.0 if tp + fp + fn == 0 else 0.0
        return {
            "IoU": tp / (tp + fp + fn) if tp + fp + fn else absent,
            "Dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else absent,
            "precision": tp / (tp + fp) if tp + fp else absent,
            "recall": tp / (tp + fn) if tp + fn else absent,
            "accuracy": (self.pixels - fp - fn) / self.pixels if self.pixels else 1.0,
        }


def semantic_scores(
    truth: NDArray[Any], prediction: NDArray[Any], n_classes: int = 2, ignore: NDArray[Any] | None = None
) -> SemanticScores:
    """Count pixels of classes 0 … n_classes − 1 in two class images of one shape; `ignore` nonzero leaves pixels out.

    For foreground against background pass `labels > 0`; class 1 is then the foreground.

    Raises:
        ValueError: shapes differ or a value is outside the classes.
    """
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if true.shape != predicted.shape:
        raise ValueError(f"truth has shape {true.shape} but prediction {predicted.shape}: scores need equal shapes")
    if ignore is not None:
        keep = np.asarray(ignore) == 0
        true, predicted = true[keep], predicted[keep]
    for name, image in (("truth", true), ("prediction", predicted)):
        if image.size and not (image.min() >= 0 and image.max() < n_classes):
            raise ValueError(f"{name}: classes {image.min()}–{image.max()} are outside 0–{n_classes - 1}")
    pairs = true.ravel().astype(np.int64) * n_classes + predicted.ravel()
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)  # [C true, C predicted]
    tp = np.diagonal(confusion).astype(np.int64)
    return SemanticScores(
        classes=tuple(range(n_classes)),
        tp=tp,
        fp=confusion.sum(axis=0) - tp,
        fn=confusion.sum(axis=1) - tp,
        pixels=int(true.size),
    )


def pool_semantic(scores: Iterable[SemanticScores]) -> SemanticScores:
    """Sum the counts of several images (micro average).

    Raises:
        ValueError: there is no image, or the classes differ.
    """
    summed = list(scores)
    if not summed:
        raise ValueError("no images to pool")
    if any(score.classes != summed[0].classes for score in summed):
        raise ValueError("images scored over different classes cannot be pooled")
    return SemanticScores(
        classes=summed[0].classes,
        tp=np.sum([s.tp for s in summed], axis=0),
        fp=np.sum([s.fp for s in summed], axis=0),
        fn=np.sum([s.fn for s in summed], axis=0),
        pixels=sum(s.pixels for s in summed),
    )
