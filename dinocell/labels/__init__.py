"""Label images as objects: files, cells, regions, contours, polygons, tables."""
