"""Cellpose 3's U-Net from random weights, trained for a number of seconds; runs in its own environment.

    PYTHONPATH=. ENV/bin/python benchmarks/peers/train_cellpose3.py --dataset DATASET --seconds 480 --out OUT

Cellpose's own train_seg with its defaults (AdamW, learning rate 0.005, crops of 224 px scaled to one mean diameter).
Its schedule is set in epochs: some steps at learning rate 0 are timed, and as many epochs as fit the budget are run.
Reading the images and making the flow targets is not counted. Thresholds are chosen on the val split, as elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from typing import Any

from peer import Arguments, Picture, finish, mean_score, parse, pictures

BATCH = 8  # Cellpose's
MIN_EPOCHS = 30  # it warms up over 10 epochs: where fewer than 30 fit, an epoch takes fewer images
MIN_STEPS = 12  # below this it would not leave the warm-up
MAX_VAL = 8
GRID = tuple(itertools.product((-1.0, 0.0, 1.0), (0.4, 0.0)))  # cell probability (a logit), flow threshold (0 = off)


def main() -> None:
    """Trains, chooses thresholds, segments the test split."""
    arguments = parse(__doc__)
    import torch
    from cellpose import models

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model = models.CellposeModel(gpu=torch.cuda.is_available(), pretrained_model=False, diam_mean=30.0)
    parameters = sum(p.numel() for p in model.net.parameters())
    epochs, seconds = train(model, arguments)
    threshold, flow = choose(model, pictures(arguments.dataset, "val")[:MAX_VAL])

    def segment(gray: Any) -> Any:
        return predict(model, gray, threshold, flow)

    finish(
        arguments,
        segment,
        name="Cellpose 3 (U-Net, random start)",
        version=f"cellpose {importlib.metadata.version('cellpose')}, torch {torch.__version__}",
        train_seconds=seconds,
        notes={
            "epochs": epochs,
            "parameters": parameters,
            "cellprob_threshold": threshold,
            "flow_threshold": flow,
            "diameter": float(model.net.diam_labels.item()),
        },
    )


def train(model: Any, arguments: Arguments) -> tuple[int, float]:
    """Epochs run and seconds taken."""
    import numpy as np
    from cellpose import dynamics
    from cellpose.train import train_seg

    images = pictures(arguments.dataset, "train")
    labels = dynamics.labels_to_flows([p.labels for p in images], device=model.device)
    settings: dict[str, Any] = {
        "train_data": [p.gray.astype(np.float32) for p in images],
        "train_labels": labels,
        "channels": [0, 0],
        "save_path": arguments.out,
        "model_name": "unet",
        "min_train_masks": 0,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    # The first epoch of the warm-up has learning rate 0: these two only take time, the first one to compile.
    train_seg(model.net, n_epochs=1, nimg_per_epoch=BATCH, **settings)
    timed = time.perf_counter()
    train_seg(model.net, n_epochs=1, nimg_per_epoch=2 * BATCH, **settings)
    batch = (time.perf_counter() - timed) / 2
    batches = max(int((arguments.seconds - (time.perf_counter() - start)) / batch), MIN_STEPS)
    per_epoch = min(-(-len(images) // BATCH), max(batches // MIN_EPOCHS, 1))
    epochs = batches // per_epoch
    train_seg(model.net, n_epochs=epochs, nimg_per_epoch=min(per_epoch * BATCH, len(images)), **settings)
    return epochs, time.perf_counter() - start


def choose(model: Any, held: list[Picture]) -> tuple[float, float]:
    """The thresholds of the best mean score on the val split; Cellpose's defaults where it makes no difference."""
    from cellpose import dynamics

    steps = 200 * model.net.diam_labels.item() / model.net.diam_mean.item()  # as eval() scales them
    found: dict[tuple[float, float], list[Any]] = {pair: [] for pair in GRID}
    for picture in held:
        _, maps, _ = model.eval(picture.gray.astype("float32"), channels=[0, 0], diameter=None, compute_masks=False)
        for pair in GRID:
            labels = dynamics.resize_and_compute_masks(
                maps[1], maps[2], niter=steps, cellprob_threshold=pair[0], flow_threshold=pair[1], device=model.device
            )
            found[pair].append(labels[0] if isinstance(labels, tuple) else labels)
    truths = [p.labels for p in held]
    scores = {pair: mean_score(truths, labels) for pair, labels in found.items()}
    return max(GRID, key=lambda pair: (scores[pair], pair == (0.0, 0.4)))


def predict(model: Any, gray: Any, threshold: float, flow: float) -> Any:
    """Labels of one image; the diameter is the mean of the training images', as Cellpose stores it."""
    return model.eval(
        gray.astype("float32"), channels=[0, 0], diameter=None, cellprob_threshold=threshold, flow_threshold=flow
    )[0]


if __name__ == "__main__":
    main()
