"""A trained network over an image of any size."""
