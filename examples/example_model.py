"""The model of the notebooks: the packaged one, or a tiny one trained here where the installation has none."""

from __future__ import annotations

from pathlib import Path

from dinocell import finetune
from dinocell.core.config import from_dict
from dinocell.datasets.synthetic.sample import write_sample
from dinocell.models.folder import is_model_folder
from dinocell.models.packaged import default_model


def model_for_examples(folder: Path, quick: bool = False) -> str:
    """Name of the packaged model, else the folder of a tiny model trained on synthetic cells (about two minutes).

    Args:
        folder: where the tiny model and its images go.
        quick: train for a few seconds only, to see that the code runs; such a model segments nothing.
    """
    packaged = default_model()
    if packaged is not None:
        return packaged
    done = folder / "tiny_model" / "model"
    if is_model_folder(done):
        return str(done)
    print("No packaged model in this installation: a tiny one is trained on synthetic cells.")
    sample, size = folder / "sample", 64 if quick else 256
    images = (4, 2) if quick else (36, 3)
    write_sample(sample, n_unlabelled=0, n_train=images[0], n_val=images[1], n_test=2, size=size, seed=100)
    recipe = {
        "output_dir": str(folder / "tiny_model"),
        "crop_size": 64 if quick else 128,
        "input_size": 64 if quick else 128,
        "overlap": 16 if quick else 32,
        "data": {"root": [str(sample / "labelled")]},
        "backbone": {"arch": "vit_tiny", "depth": 2 if quick else 4, "layerscale_init": 1.0},
        "decoder": {"kind": "bilinear", "neck_width": 32 if quick else 64, "detail_width": 16},
        "augment": {"invert": 0.0, "cell_focus": 0.8},
        "objective": {"flow_error": 0.0},
        "train": {
            "steps": 10 if quick else 240,
            "batch_size": 4 if quick else 8,
            "lr": 1e-3,
            "warmup": 0.05,
            "weight_decay": 0.05,
            "clip_gradient": 1.0,
            "ema": 0.98,
            "log_every": 100,
        },
        "validate": {"times": 1, "tune_decoding": not quick},
    }
    return str(finetune.run(from_dict(finetune.FinetuneConfig, recipe)).folder / "model")
