"""Crops and masks of stage 1."""
