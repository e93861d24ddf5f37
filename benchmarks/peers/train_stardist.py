"""StarDist from random weights, trained for a number of seconds; runs in its own environment.

    PYTHONPATH=. ENV/bin/python benchmarks/peers/train_stardist.py --dataset DATASET --seconds 480 --out OUT

StarDist2D with 32 rays on a grid of 2, its U-Net, losses and learning rate (3e-4), and the augmentation of its examples
(flips, quarter turns, intensity). The learning rate follows a cosine over the budget, at the end of which training
stops; the best weights on the val split are kept and both thresholds are optimised there, by StarDist's own function.
Reading the images and the first step, which compiles the network, are not counted.
"""

from __future__ import annotations

import os
import time
from typing import Any

from peer import Arguments, Picture, finish, parse, pictures

PATCH = 128
BATCH = 4
STEPS = 50  # batches after which StarDist looks at the val split


def main() -> None:
    """Trains, optimises thresholds, segments the test split."""
    arguments = parse(__doc__)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import stardist
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(arguments.seed)
    model, seconds, steps = train(arguments, tf)

    def segment(gray: Any) -> Any:
        return model.predict_instances(normalised(gray))[0]

    finish(
        arguments,
        segment,
        name="StarDist (random start)",
        version=f"stardist {stardist.__version__}, tensorflow {tf.__version__}",
        train_seconds=seconds,
        notes={
            "steps": steps,
            "parameters": int(model.keras_model.count_params()),
            "thresholds": {"prob": float(model.thresholds.prob), "nms": float(model.thresholds.nms)},
        },
    )


def normalised(gray: Any) -> Any:
    """Percentiles 1 and 99.8 to 0 and 1, as StarDist's examples do."""
    from csbdeep.utils import normalize

    return normalize(gray.astype("float32"), 1, 99.8)


def train(arguments: Arguments, tf: Any) -> tuple[Any, float, int]:
    """The trained model, the seconds and the steps it took."""
    from stardist.models import Config2D, StarDist2D

    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=1,
        train_patch_size=(PATCH, PATCH),
        train_batch_size=BATCH,
        train_steps_per_epoch=STEPS,
        train_epochs=100_000,
        train_tensorboard=False,
        train_reduce_lr=None,
    )
    model = StarDist2D(config, name="stardist", basedir=str(arguments.out))
    known, held = (at_least_a_patch(pictures(arguments.dataset, split)) for split in ("train", "val"))
    model.prepare_for_training()
    budget = time_budget(tf, arguments.seconds, config.train_learning_rate)
    model.callbacks.append(budget)
    model.train(
        [normalised(p.gray) for p in known],
        [p.labels for p in known],
        validation_data=([normalised(p.gray) for p in held], [p.labels for p in held]),
        augmenter=augment(arguments.seed),
        seed=arguments.seed,
    )
    seconds = time.perf_counter() - budget.start
    model.optimize_thresholds([normalised(p.gray) for p in held], [p.labels for p in held])
    return model, seconds, budget.steps


def at_least_a_patch(images: list[Picture]) -> list[Picture]:
    """Images padded by reflection to the size of a training patch; labels with background."""
    import numpy as np

    padded = []
    for picture in images:
        pad = [(0, max(PATCH - side, 0)) for side in picture.gray.shape]
        gray = np.pad(picture.gray, pad, mode="reflect" if max(p for _, p in pad) < min(picture.gray.shape) else "edge")
        labels = np.pad(picture.labels, pad)
        padded.append(Picture(dataset=picture.dataset, stem=picture.stem, gray=gray, labels=labels))
    return padded


def time_budget(tf: Any, seconds: float, rate: float) -> Any:
    """A callback that anneals the learning rate over the budget and stops at its end."""
    import math

    class TimeBudget(tf.keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.start = time.perf_counter()
            self.steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if self.steps == 1:  # it compiled the network
                self.start = time.perf_counter()
            done = min((time.perf_counter() - self.start) / seconds, 1.0)
            self.model.optimizer.learning_rate.assign(rate * max(0.5 * (1 + math.cos(math.pi * done)), 0.01))
            if done >= 1.0:
                self.model.stop_training = True

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # looking at the val split counts, as for all
            if time.perf_counter() - self.start >= seconds:
                self.model.stop_training = True

    return TimeBudget()


def augment(seed: int) -> Any:
    """Flips, quarter turns and a change of intensity, as in StarDist's examples."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def change(x: Any, y: Any) -> tuple[Any, Any]:
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        x, y = (np.rot90(a, turns) for a in (x, y))
        if flip:
            x, y = x[:, ::-1], y[:, ::-1]
        return x * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2), y

    return change


if __name__ == "__main__":
    main()
