"""The vision transformer of DINOv2."""
