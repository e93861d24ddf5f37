"""Where a process stands is read from torchrun first, then SLURM; reductions agree over two real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dinocell.core.errors import ConfigError
from dinocell.training import distributed

SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("python", 0, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, ("torchrun", 1, 1, 2)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ("torchrun", 0, 0, 2)),
        (SLURM, ("slurm", 3, 1, 8)),
        # inside `salloc`, before any srun: variables of the allocation, but no step of several tasks
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, ("python", 0, 0, 1)),
    ],
)
def test_the_launcher_is_recognised(environment: dict[str, str], expected: tuple[str, int, int, int]) -> None:
    assert distributed._place(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("gpu[003-005,9]", "gpu003"), ("a-b[1,3]", "a-b1"), ("x7,y[1-2]", "x7"), ("r[1-4]-ib", "r1-ib")],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert distributed.first_host(nodes) == first


def test_reductions_over_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import torch\n"
        "from dinocell.training import distributed as d\n"
        "w = d.setup('cpu')\n"
        "x = torch.tensor([float(w.rank + 1)])\n"
        "assert d.all_reduce_sum(x).item() == 3 and d.all_reduce_mean(x).item() == 1.5\n"
        "assert d.all_reduce_max(x).item() == 2 and x.item() == w.rank + 1\n"
        "assert d.any_rank(w.rank == 1) and not d.any_rank(False)\n"
        "assert d.gather_objects(w.rank) == [0, 1] and d.broadcast_object(w.rank) == 0\n"
        "d.barrier(); d.cleanup(); print('agreed')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 2


def test_one_process_needs_no_group() -> None:
    import torch

    assert distributed.all_reduce_sum(torch.tensor(3.0)).item() == 3.0
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.is_main()


def test_the_patience_with_other_ranks_can_be_set() -> None:
    assert distributed.timeout({}).total_seconds() == 600
    assert distributed.timeout({"DINOCELL_TIMEOUT_MINUTES": "0.5"}).total_seconds() == 30
    for wrong in ("soon", "0", "-1"):
        with pytest.raises(ConfigError, match="DINOCELL_TIMEOUT_MINUTES"):
            distributed.timeout({"DINOCELL_TIMEOUT_MINUTES": wrong})


def test_a_node_that_is_no_host_name_is_looked_up_in_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho NodeName=$5 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=host\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert distributed.node_address("localhost") == "localhost"
    assert distributed.node_address("no-such-node.invalid") == "10.1.2.3"
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        distributed.node_address("no-such-node.invalid")
