"""Write the backbone that stage 1 trained (the teacher) in the format another program loads.

    python ssl/export_backbone.py runs/adapt --to backbone      # backbone.safetensors + backbone.json
    python ssl/export_backbone.py runs/adapt --to hf --out DIR  # also: dinov2 (.pth), timm

Takes seconds; prints a load report (tensors matched, missing, unexpected; checksum) and the path written.
"""

from __future__ import annotations

import argparse
from typing import get_args

from dinocell import models
from dinocell.core.errors import run_main
from dinocell.models.weights.export import ExportFormat


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description="Write the backbone of a stage-1 run in another program's format.")
    parser.add_argument("run_dir", help="run folder of stage 1, or a weights file")
    parser.add_argument("--to", choices=get_args(ExportFormat), default="backbone", help="format (default: backbone)")
    parser.add_argument("--out", help="folder, or file for backbone and dinov2 (default: in the run folder)")
    arguments = parser.parse_args()
    models.export_backbone(arguments.run_dir, to=arguments.to, out=arguments.out)


if __name__ == "__main__":
    run_main(main)
