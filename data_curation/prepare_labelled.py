"""Convert a published labelled dataset to the layout that finetune/train.py reads, checking every pair.

    python data_curation/prepare_labelled.py FORMAT SRC --out DIR [key=value …]

FORMAT is a layout such as coco or a preset of data_curation/configs such as livecell, which also says where to
download SRC. Expect images/ and masks/ for each split, dataset.yaml and prepare_report.csv in DIR. `--help` lists all.
"""

from dinocell.cli.train.prepare import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main)
