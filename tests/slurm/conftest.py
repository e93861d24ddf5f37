"""A real SLURM of two nodes on this machine: its own munge key, ports and folders; nothing of the system is touched."""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
CONFIGURATION = """
ClusterName=dinocelltest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=20
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobRequeue=1
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{nodes}] CPUs=8
PartitionName=test Nodes=n[1-2] Default=YES State=UP
"""


def _end_with_parent() -> None:
    """Daemons must not outlive a test run that is killed."""
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def _free_ports() -> tuple[int, int]:
    """A port for slurmctld and the first of two neighbours for the nodes."""
    for first in range(17001, 18000, 7):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 3):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first + 2, first
    pytest.skip("no free ports for a test SLURM")


@dataclass
class Slurm:
    """The running cluster, and its commands."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def __call__(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self) -> None:
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        control, first = _free_ports()
        text = CONFIGURATION.format(
            host=host, user=user, folder=self.folder, control=control, nodes=f"{first}-{first + 1}"
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        paths = [
            f"--{name}={self.folder}/munge.{end}"
            for name, end in (
                ("key-file", "key"),
                ("socket", "socket"),
                ("pid-file", "pid"),
                ("seed-file", "seed"),
                ("log-file", "log"),
            )
        ]
        self._daemon("munged", "--foreground", "--force", *paths)
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            (self.folder / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self.wait_for(
            lambda: self("sinfo", "-h", "-o", "%D %t", check=False).split() == ["2", "idle"], "two idle nodes"
        )

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}-{command[-1].strip('-')[:2]}.out").open("wb")
        self.daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, preexec_fn=_end_with_parent)
        )

    def stop(self) -> None:
        """End every job, every daemon, and whatever they left behind."""
        with contextlib.suppress(Exception):
            self("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}", check=False)
            self("scancel", f"--user={getpass.getuser()}", check=False)
            self.wait_for(lambda: not self("squeue", "-h", check=False).strip(), "an empty queue", seconds=15)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: not self.processes(), "the last process of the test SLURM to end", seconds=10)

    def processes(self) -> list[int]:
        """Processes that carry this cluster's configuration in their environment: daemons, job steps and jobs."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …; GONE when slurmctld has forgotten the job."""
        words = self("scontrol", "-o", "show", "job", job, check=False).split()
        return next((word.partition("=")[2] for word in words if word.startswith("JobState=")), "GONE")

    def wait_until(self, job: str, *states: str, seconds: float = 60) -> str:
        self.wait_for(lambda: self.state(job) in states, f"job {job} to be {states}", seconds)
        return self.state(job)

    def hurry(self, job: str) -> None:
        """Start a requeued job now: SLURM gives it a pause of two minutes."""
        self.wait_for(lambda: self.state(job) == "PENDING", f"job {job} to be requeued")
        self("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge")
    # sockets have short paths, and munged refuses folders that others may write to
    folder = Path("/tmp") / f"dinocell-slurm-{os.getpid()}"
    folder.mkdir(mode=0o700)
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
