"""Images to try the plugin on without a microscope."""

from __future__ import annotations

from typing import Any, Literal, get_args

from dinocell.datasets.synthetic.sample import make_image

Modality = Literal["phase", "brightfield", "fluorescence"]


def synthetic_cells(size: int = 384) -> list[tuple[Any, dict[str, Any], str]]:
    """Layer data for napari: one synthetic image of each modality, side by side as separate layers."""
    return [
        (
            make_image(seed, size, modality)[0],
            {"name": f"synthetic {modality}", "translate": (0, seed * (size + 16))},
            "image",
        )
        for seed, modality in enumerate(get_args(Modality))
    ]
