"""Validation and tuning of the decoding."""
