"""Cells as polygons: GeoJSON for QuPath, ROI zips for ImageJ."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinocell.labels.polygons import Polygon, cell_polygons
from dinocell.segmentation.outputs.format import Format, PlaneOutput, encoded


def cells_to_geojson(labels: NDArray[Any], table: pd.DataFrame) -> dict[str, Any]:
    """Build a GeoJSON FeatureCollection that QuPath opens (drag it onto the image): one detection per cell, measured.

    Coordinates are pixels of the full image, x right and y down, along pixel edges.
    """
    measures = {int(row["label"]): row for row in table.to_dict("records")}
    features = []
    for number, polygons in cell_polygons(labels):
        row = {key: _plain(value) for key, value in measures[number].items() if key not in ("label", "touches_border")}
        features.append(
            {
                "type": "Feature",
                # The same labels give the same ids, so that importing twice replaces and does not double.
                "id": str(
                    uuid.uuid5(uuid.NAMESPACE_OID, f"{labels.shape} {number} {row['centroid_y']} {row['centroid_x']}")
                ),
                "geometry": _geometry(polygons),
                "properties": {
                    "objectType": "detection",
                    "name": str(number),
                    "classification": {"name": "cell", "color": [255, 220, 0]},
                    "measurements": {key: value for key, value in row.items() if value is not None},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _geometry(polygons: list[Polygon]) -> dict[str, Any]:
    rings = [
        [[*ring.tolist(), ring[0].tolist()] for ring in (polygon.exterior, *polygon.holes)] for polygon in polygons
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def imagej_rois(labels: NDArray[Any]) -> bytes:
    """Build a zip of ImageJ ROIs for the ROI manager: one traced polygon per cell, named by its label.

    Further pieces of a cell follow as `LABEL-2` …; holes are not kept, an ImageJ polygon has none.
    """
    import roifile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, polygons in cell_polygons(labels):
            for piece, polygon in enumerate(polygons, start=1):
                name = f"{number:05d}" if piece == 1 else f"{number:05d}-{piece}"
                roi = roifile.ImagejRoi.frompoints(polygon.exterior, name=name)
                roi.roitype = roifile.ROI_TYPE.TRACED
                archive.writestr(f"{name}.roi", roi.tobytes())
    return file.getvalue()


def _geojson(output: PlaneOutput) -> bytes:
    return json.dumps(cells_to_geojson(output.result.labels, output.table)).encode()


GEOJSON = Format(name="geojson", suffix="_cells.geojson", write=encoded(_geojson))
ROIS = Format(name="rois", suffix="_rois.zip", write=encoded(lambda output: imagej_rois(output.result.labels)))
