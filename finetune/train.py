"""Stage 2: fine-tune on labelled cells.

    python finetune/train.py --config finetune/configs/vitb8_flows.yaml data.root=my_folder \
        backbone.weights=runs/adapt/backbone.safetensors output_dir=runs/finetune
    torchrun --nproc-per-node 8 finetune/train.py --config … data.root=…

`my_folder` holds images/ and masks/ (label images of the same names), or {train,val,test}/{images,masks}.
Expect one line every few steps (loss, images/s, time left), scores on the val split as it goes, and at the end
OUTPUT_DIR/model (what `dinocell segment --model` takes) and OUTPUT_DIR/report.html. The same command continues an
interrupted run. `--help` lists every setting.
"""

from dinocell.cli.train.finetune import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main, None, __doc__)
