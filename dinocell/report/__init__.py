"""Figures and pages that show what a run did: overlays, PCA of patch tokens, self-contained HTML reports."""

from dinocell.report.html import Report
from dinocell.report.overlays import error_map, overlay, panel, to_rgb
from dinocell.report.pca import pca_panel, pca_rgb

__all__ = ["Report", "error_map", "overlay", "panel", "pca_panel", "pca_rgb", "to_rgb"]
