"""Cellpose's `_seg.npy`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from scipy import special

from dinocell.labels.contours import trace_contours
from dinocell.report.colours import flow_colours
from dinocell.segmentation.outputs.format import Format, PlaneOutput, encoded
from dinocell.segmentation.result import SegmentationResult

CELLPOSE_FLOW_SCALE = 5.0
CELLPOSE_LOGIT_LIMIT = 6.0


def cellpose_seg(result: SegmentationResult, source: str = "") -> dict[str, Any]:
    """Build the content of Cellpose's `_seg.npy`: masks, outlines and flows in Cellpose's own scales (5×, logits)."""
    flows, probability = result.flows, result.probability
    low = special.expit(-CELLPOSE_LOGIT_LIMIT)
    logit = special.logit(np.clip(probability, low, 1 - low)).astype(np.float32)
    level = np.round(probability * 255).astype(np.uint8)
    colours = flow_colours(flows)
    return {
        "outlines": result.labels * trace_contours(result.labels),
        "masks": result.labels,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(result.count, np.bool_),
        "filename": source,
        "flows": [
            colours[None],
            level[None],
            np.zeros_like(colours)[None],
            [],
            np.concatenate([CELLPOSE_FLOW_SCALE * flows, logit[None]]),
        ],
        "diameter": np.nan,
    }


def _npy(output: PlaneOutput) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(cellpose_seg(output.result, output.source)), allow_pickle=True)
    return file.getvalue()


SEG_NPY = Format(name="npy", suffix="_seg.npy", write=encoded(_npy))
