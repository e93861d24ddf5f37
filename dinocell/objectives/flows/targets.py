"""Flow targets of label images (Cellpose; Stringer et al., Nature Methods 18, 100, 2021)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from dinocell.labels.cells import Cells, find_cells
from dinocell.labels.regions import split_fragments
from dinocell.objectives.base import Array
from dinocell.objectives.flows import diffusion

Variant = Literal["cellpose", "leak_free"]


def masks_to_flows(labels: npt.ArrayLike, variant: Variant = "cellpose", threads: int = 1) -> Array:
    """Make the flow targets of a label image.

    Args:
        labels: (H, W), any integer dtype and numbering, 0 = background.
        variant: `cellpose` takes the gradient of all cells' heat in one image and as many diffusion steps for every
            cell as the largest needs, as Cellpose 4 does; `leak_free` keeps gradient and steps to each cell alone,
            starts from all pixels nearest to the centroid, and gives each fragment of a cell its own centre.
        threads: threads that share the cells.

    Returns:
        (2, H, W) float32, dy then dx, unit length inside cells (0 at a flat point), 0 outside.

    Raises:
        ValueError: labels are not two-dimensional, negative, or not integers.
    """
    cells = find_cells(labels)
    if variant == "leak_free":
        whole = split_fragments(cells.labels)
        cells = cells if whole is cells.labels else find_cells(whole)
    flows = np.zeros((2, *cells.labels.shape), np.float32)
    if variant == "leak_free":
        diffusion.run(cells, threads, diffusion.fill_flows, cells, diffusion.iterations(cells, False), flows)
    else:
        diffusion.heat_to_flows(cells.labels, cells.numbers, cells.boxes, _heat(cells, threads), flows)
    return flows


def _heat(cells: Cells, threads: int) -> npt.NDArray[np.float64]:
    heat = np.empty(cells.labels.shape, np.float64)
    diffusion.clear(cells.boxes, heat)
    diffusion.run(cells, threads, diffusion.fill_heat, cells, diffusion.iterations(cells, True), heat)
    return heat


def flow_errors(cells: Cells, flows: Array, variant: Variant = "cellpose", threads: int = 1) -> npt.NDArray[np.float64]:
    """Measure the mean squared difference (n,) of each cell's own target flow and `flows` (2, H, W) at unit scale."""
    errors = np.zeros(len(cells.numbers), np.float64)
    if variant == "leak_free":
        own = masks_to_flows(cells.labels, variant, threads)
        diffusion.flow_differences(cells.labels, cells.index, own, flows, errors)
    else:
        diffusion.heat_errors(cells.labels, cells.numbers, cells.boxes, _heat(cells, threads), flows, errors)
    return errors / cells.areas
