"""Resizing and resampling of images, label images and maps."""
