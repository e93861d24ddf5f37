"""Monitors of stage 1: ranks, probes, the best teacher."""
