"""Raw maps of the network as a NumPy archive."""

from __future__ import annotations

import io

import numpy as np

from dinocell.segmentation.outputs.format import Format, PlaneOutput, encoded


def _archive(output: PlaneOutput) -> bytes:
    maps, channels = output.result.maps, output.result.objective.channels
    if maps is None:
        maps = np.zeros((len(channels), *output.result.labels.shape), np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, maps=maps, channels=np.array(channels))
    return file.getvalue()


FLOWS = Format(name="flows", suffix="_flows.npz", write=encoded(_archive))
