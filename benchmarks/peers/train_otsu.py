"""Otsu's threshold and a watershed: nothing is trained; what every trained method should beat.

python benchmarks/peers/train_otsu.py --dataset DATASET --seconds 0 --out OUT
"""

from __future__ import annotations

import importlib.metadata

from peer import finish, parse

from dinocell.evaluation.baseline import otsu_watershed


def main() -> None:
    """Segments the test split."""
    version = f"scikit-image {importlib.metadata.version('scikit-image')}"
    finish(parse(__doc__), otsu_watershed, name="Otsu + watershed", version=version, train_seconds=0.0, notes={})


if __name__ == "__main__":
    main()
