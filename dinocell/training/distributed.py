"""Several processes: one entry point for torchrun, SLURM or submitit, and plain python.

torchrun's variables win over SLURM's, so that `torchrun` inside an allocation starts the processes it was asked for.
Without a group every reduction is the identity, so callers never ask how many processes there are.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dinocell.core.device import choose_device
from dinocell.core.errors import ConfigError, first_line

T = TypeVar("T")
TIMEOUT_VARIABLE = "DINOCELL_TIMEOUT_MINUTES"
TIMEOUT_MINUTES = 10.0  # longer than rank 0 needs for a checkpoint or a report, shorter than anyone's patience


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among all of them."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    device_reason: str = "no GPU found"
    launcher: str = "python"


_world: World | None = None


def world() -> World:
    """The current world; a single CPU process before `setup`."""
    return _world or World()


def setup(device: str = "auto") -> World:
    """Join the process group if there is one and choose this process's device. A second call returns the first's world.

    Raises:
        ConfigError: the device cannot be used, or a launcher's variables are incomplete.
    """
    global _world
    if _world is not None:
        return _world
    launcher, rank, local_rank, size = _place(os.environ)
    chosen, reason = choose_device(device, probe=size == 1)
    if chosen.type == "cuda":
        index = chosen.index if chosen.index is not None else local_rank % torch.cuda.device_count()
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if size > 1:
        _join(launcher, rank, size, "nccl" if chosen.type == "cuda" else "gloo", chosen)
    _world = World(rank=rank, world_size=size, device=chosen, device_reason=reason, launcher=launcher)
    atexit.register(cleanup)
    return _world


def _place(environment: Mapping[str, str]) -> tuple[str, int, int, int]:
    """(launcher, rank, local rank, world size) from the environment."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return (
            "torchrun",
            int(environment["RANK"]),
            int(environment.get("LOCAL_RANK", 0)),
            int(environment["WORLD_SIZE"]),
        )
    # An interactive `salloc` or a bare `sbatch` script sets SLURM_NTASKS without starting tasks; only srun sets a step.
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        size = int(environment["SLURM_STEP_NUM_TASKS"])
        if size > 1 or "SUBMITIT_EXECUTOR" in environment:
            return "slurm", int(environment["SLURM_PROCID"]), int(environment.get("SLURM_LOCALID", 0)), size
    if "SUBMITIT_LOCAL_NTASKS" in environment:
        size = int(environment["SUBMITIT_LOCAL_NTASKS"])
        rank = int(environment.get("SUBMITIT_LOCAL_GLOBALID", 0))
        return "submitit", rank, int(environment.get("SUBMITIT_LOCAL_LOCALID", rank)), size
    return "python", 0, 0, 1


def _join(launcher: str, rank: int, size: int, backend: str, device: torch.device) -> None:
    if launcher == "torchrun":
        init = "env://"
    else:
        init = f"tcp://{master_address(os.environ)}:{master_port(os.environ)}"
    try:
        dist.init_process_group(
            backend,
            init_method=init,
            rank=rank,
            world_size=size,
            timeout=timeout(os.environ),
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"rank {rank} of {size} could not join the {backend} group at {init}: {first_line(error)}"
        ) from error


def master_address(environment: Mapping[str, str]) -> str:
    """Host of rank 0: MASTER_ADDR, else the first host of the SLURM job, else this machine."""
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    if "SLURM_LAUNCH_NODE_IPADDR" in environment and environment.get("SLURM_NNODES", "1") == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    return node_address(first_host(nodes)) if nodes else "127.0.0.1"


def node_address(node: str) -> str:
    """A node's name if it is a host name too, else the address SLURM itself uses (NodeAddr)."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        shown = subprocess.run(
            ["scontrol", "-o", "show", "node", node], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    if found is None:
        raise ConfigError(f"SLURM node {node!r} has no known address; set MASTER_ADDR to the host of rank 0")
    return found.group(1)


def first_host(nodelist: str) -> str:
    """First name of a SLURM node list: `gpu[003-005,9],x1` → `gpu003`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodelist)
    if match is None:
        raise ConfigError(f"SLURM node list {nodelist!r} is not understood; set MASTER_ADDR")
    prefix, first, suffix = match.groups()
    return f"{prefix}{first or ''}{suffix or ''}"


def master_port(environment: Mapping[str, str]) -> int:
    """MASTER_PORT, else a port derived from the job id so that jobs sharing a node do not meet."""
    if "MASTER_PORT" in environment:
        return int(environment["MASTER_PORT"])
    job = re.sub(r"\D", "", environment.get("SLURM_JOB_ID") or environment.get("SUBMITIT_LOCAL_JOB_ID", "0")) or "0"
    return 20_000 + int(job) % 20_000


def timeout(environment: Mapping[str, str]) -> timedelta:
    """Time that a rank waits for the others before it assumes that one is lost and ends the job.

    Raises:
        ConfigError: DINOCELL_TIMEOUT_MINUTES is not a positive number.
    """
    text = environment.get(TIMEOUT_VARIABLE, str(TIMEOUT_MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if minutes <= 0:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={text!r}: must be a number of minutes above 0")
    return timedelta(minutes=minutes)


def abandon() -> None:
    """After a failure: end without the orderly farewell, which would wait for ranks that wait for this one."""
    global _world
    atexit.unregister(cleanup)
    _world = None


def cleanup() -> None:
    """Leave the process group; safe to call twice."""
    global _world
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _world = None


def is_main() -> bool:
    """True on rank 0, the one that prints and writes."""
    return world().rank == 0


def barrier() -> None:
    """Wait until every process is here."""
    if _grouped():
        dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over processes; the input is left alone. No gradient flows through."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Maximum over processes; the input is left alone."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over processes; the input is left alone."""
    return all_reduce_sum(tensor) / world().world_size if _grouped() else tensor.clone()


def any_rank(flag: bool) -> bool:
    """True if the flag is set on any process; every process gets the same answer."""
    return bool(max_rank(int(flag)))


def max_rank(number: int) -> int:
    """The largest of a small number over all processes; every process gets the same answer."""
    if not _grouped():
        return number
    return int(all_reduce_max(torch.tensor(number, device=world().device)).item())


def gather_objects(item: T) -> list[T]:
    """Every process's item, in rank order, on every process."""
    if not _grouped():
        return [item]
    gathered: list[Any] = [None] * world().world_size
    dist.all_gather_object(gathered, item)
    return gathered


def broadcast_object(item: T) -> T:
    """Rank 0's item on every process."""
    if not _grouped():
        return item
    holder: list[Any] = [item]
    dist.broadcast_object_list(holder, src=0, device=world().device)
    return holder[0]


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reduced(tensor: torch.Tensor, operation: Any) -> torch.Tensor:
    result = tensor.detach().clone()
    if _grouped():
        dist.all_reduce(result, op=operation)
    return result
