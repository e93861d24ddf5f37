"""From any pile of microscopy images to gray crops worth training on, with a reason for everything left out.

    python data_curation/curate.py SRC… --out DIR [--size 1024] [key=value …]

Expect crops/, manifest.csv, rejected.csv and contact_sheet.html in DIR, at about 50 images a second and core for
images of 0.5 megapixels. Interrupted or killed, the same command goes on where it stopped. `--help` lists every key.
"""

from dinocell.cli.train.curate import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main)
