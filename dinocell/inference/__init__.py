"""Segmenting images of any size with a trained model."""
