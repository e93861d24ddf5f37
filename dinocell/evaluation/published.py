"""Figures of the paper (Fig. 6c; BCCD from its semantic companion), shown beside ours on the same datasets."""

import re
from collections.abc import Mapping

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "LIVECell": {
        "DINOCell": {"MMA": 0.875, "SEG": 0.784, "DET": 0.926},
        "Cellpose-SAM": {"MMA": 0.807, "SEG": 0.710, "DET": 0.852},
        "SAMCell-LIVECell": {"MMA": 0.834, "SEG": 0.744, "DET": 0.911},
    },
    "PBL-HEK": {"DINOCell": {"MMA": 0.734, "SEG": 0.553, "DET": 0.818}},
    "PBL-N2A": {"DINOCell": {"MMA": 0.923, "SEG": 0.859, "DET": 0.947}},
    "Glioma C6": {"DINOCell": {"MMA": 0.737, "SEG": 0.697, "DET": 0.684}},
    "BCCD": {
        "DinoBloom semantic": {
            "IoU": 0.9112,
            "Dice": 0.9536,
            "precision": 0.9396,
            "recall": 0.9680,
            "accuracy": 0.9709,
        }
    },
}
"""Dataset → model → metric. SEG, DET and MMA were measured with ignore masking; BCCD's are foreground scores."""


def published_for(dataset: str) -> tuple[str, Mapping[str, Mapping[str, float]]] | None:
    """Published name and figures of a dataset called e.g. `livecell_test` or `pbl_hek`; None without any."""
    plain = re.sub(r"[^a-z0-9]", "", dataset.lower())
    for name, figures in PUBLISHED.items():
        if re.sub(r"[^a-z0-9]", "", name.lower()) in plain:
            return name, figures
    return None
