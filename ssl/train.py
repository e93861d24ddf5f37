"""Stage 1: continue DINOv2/iBOT pretraining on unlabelled microscopy crops.

    torchrun --nproc-per-node 8 ssl/train.py --config ssl/configs/vitb8_microscopy.yaml \
        data.root=crops weights=dinov2_vitb14_reg4_pretrain.pth output_dir=runs/adapt

One process needs no torchrun: `python ssl/train.py --config …`. Expect a line with every loss term, the effective
learning rate, images/s, MFU, data-wait share and time left each `log_every` steps; at the end RUN/report.html and a
checkpoint that `python ssl/export_backbone.py RUN --to backbone` turns into backbone.safetensors. After an
interruption of any kind the same command continues where the run was.
"""

from dinocell.cli.train.pretrain import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main, None, __doc__)
