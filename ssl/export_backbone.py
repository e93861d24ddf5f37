"""Write the backbone that stage 1 trained (the teacher) for another program: `dinocell export`.

    python ssl/export_backbone.py runs/adapt --to backbone      # backbone.safetensors + backbone.json
    python ssl/export_backbone.py runs/adapt --to hf --out DIR  # also: dinov2 (.pth), timm

Takes seconds; prints a load report (tensors matched, missing, unexpected; checksum) and the path written.
"""

from dinocell.cli.train.export import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main)
