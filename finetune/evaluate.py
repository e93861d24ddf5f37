"""Score a fine-tuned model on a labelled dataset: SEG, DET, MMA, AP and PQ, beside Otsu + watershed.

    python finetune/evaluate.py runs/finetune/model DATASET [--split test] [--out runs/finetune/evaluation]

Writes evaluation.json, per_image.csv, report.html and the predicted label images into --out (default: `evaluation`
beside the model folder) and prints the table.
"""

import argparse
from pathlib import Path

from dinocell.errors import run_main
from dinocell.evaluation import evaluate_model


def main() -> None:
    """Read the command line and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder, for example runs/finetune/model, or a packaged model's name")
    parser.add_argument("dataset", help="DATASET with {train,val,test}/{images,masks}, or a folder of several")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no-baseline", action="store_true", help="leave out Otsu + watershed")
    given = parser.parse_args()
    out = Path(given.out) if given.out else Path(given.model).parent / "evaluation"
    evaluate_model(
        given.model,
        given.dataset,
        split=given.split,
        out=out,
        device=given.device,
        with_baseline=not given.no_baseline,
    )


if __name__ == "__main__":
    run_main(main)
