"""Pictures and pages that show what a run did: overlays, PCA of patch tokens, self-contained HTML reports."""

from dinocell.report.html import Report as Report
from dinocell.report.overlays import contours as contours
from dinocell.report.overlays import error_map as error_map
from dinocell.report.overlays import overlay as overlay
from dinocell.report.overlays import panel as panel
from dinocell.report.overlays import to_rgb as to_rgb
from dinocell.report.pca import pca_panel as pca_panel
from dinocell.report.pca import pca_rgb as pca_rgb
