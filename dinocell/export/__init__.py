"""Trained models for other software: ONNX, BioImage Model Zoo."""
