"""Cores of this machine that the process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Count the cores that the scheduler grants to this process: under SLURM those of the job, not of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
