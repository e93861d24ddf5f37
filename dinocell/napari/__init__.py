"""The napari plugin (npe2 manifest: napari.yaml): segment an image layer, get a labels layer with its table."""
