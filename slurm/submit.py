"""Submit a stage to SLURM: `python slurm/submit.py ssl --profile slurm/profiles/8gpu.yaml --config … key=value …`.

Prints the job's number, where its log is and how to stop and resume it; `--dry-run` prints the sbatch script,
`--local` runs the same job here. See slurm/README.md.
"""

from dinocell.cli.stages import STAGES
from dinocell.cluster.submit import main
from dinocell.core.errors import run_main

if __name__ == "__main__":
    run_main(main, STAGES)
