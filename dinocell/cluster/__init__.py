"""SLURM through submitit: jobs, profiles, stages, records, logs, arrays."""
