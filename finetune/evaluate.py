"""Score a fine-tuned model on a labelled dataset: SEG, DET, MMA, AP and PQ, beside Otsu + watershed.

    python finetune/evaluate.py runs/finetune/model DATASET [--split test] [--out runs/finetune/evaluation]

Writes evaluation.json, per_image.csv, report.html and the predicted label images into --out (default: `evaluation`
beside the model folder) and prints the table.
"""

from dinocell.cli.use.evaluate import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main)
