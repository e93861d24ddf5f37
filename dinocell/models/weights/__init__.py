"""Weights of backbones: published layouts, loading at another resolution, export."""
