"""Labelled images as training samples."""
