"""Failure drill: a short stage 1 run killed at random moments and started again, against an undisturbed one.

    OMP_NUM_THREADS=1 python benchmarks/preempt.py [--kills 20] [--ranks 1] [--seed 0] [--json FILE]

Signals are drawn from -9, TERM and USR2 and hit a random rank; moments from the start-up, the steps and the writing of
checkpoints. Reported: optimizer steps lost per kill, damaged checkpoints, and whether the final weights differ. Expect
no damage, at most one checkpoint interval lost per -9, nothing for the others, and equal weights. About ten seconds a
kill, most of it importing torch. Exits with 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dinocell.core.errors import EXIT_STOPPED
from dinocell.core.files import load_file
from dinocell.training.checkpoint import verify
from dinocell.training.progress import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)
EVERY = 5  # steps between checkpoints
GRACE = 15.0  # seconds in which the other ranks may notice a lost one by themselves
RECIPE = [
    "model.depth=2",
    "model.image_size=64",
    "augment.global_size=64",
    "augment.local_size=32",
    "augment.local_crops=2",
    "optim.batch_size=2",
    "data.workers=0",
    f"checkpoint_every={EVERY}",
    "log_every=1",
    "monitor.every=0",
    "tensorboard=false",
    "device=cpu",
]


def main() -> int:
    """Run the drill, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    random.seed(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        steps = given.kills * (EVERY + 2)
        straight, killed = (
            Run(folder / part, folder / "images", steps, given.ranks) for part in ("straight", "killed")
        )
        straight.start()
        assert straight.wait() == [0] * given.ranks, straight.log.read_text()[-2000:]
        kills = [kill(killed) for _ in range(given.kills)]
        killed.start()
        assert killed.wait() == [0] * given.ranks, killed.log.read_text()[-2000:]
        result = summary(kills, compare(straight.folder, killed.folder, steps), given.ranks)
    print(f"{'signal':8} {'moment':12} {'at step':>8} {'resumes after':>14} {'lost':>5} {'ended in':>9}")
    for one in kills:
        print(
            f"{one['signal']:8} {one['moment']:12} {one['reached']:8} {one['saved']:14} {one['lost']:5} "
            f"{one['seconds']:7.1f} s"
        )
    for key, value in result.items():
        print(f"{key:34} {value}")
    if given.json:
        Path(given.json).write_text(json.dumps({**result, "kills": kills}, indent=1) + "\n", encoding="utf-8")
    return 0 if result["holds"] else 1


def write_images(folder: Path) -> None:
    """Six smooth random gray images of 160 px."""
    folder.mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).normal(size=(160, 160))
        image = np.clip(128 + 300 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), image)


class Run:
    """A stage 1 run in processes of its own."""

    def __init__(self, folder: Path, images: Path, steps: int, ranks: int) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        recipe = ["--config", "ssl/configs/vitt8_cpu.yaml", *RECIPE, f"optim.epoch_steps={steps}"]
        self.command = [sys.executable, "ssl/train.py", *recipe, f"data.root={images}", f"output_dir={folder}"]
        self.ranks = ranks
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start every rank, with torchrun's variables if there are several."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = []
        for rank in range(self.ranks):
            own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **own}
            with self.log.open("ab") as log:
                self.processes.append(subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def wait(self) -> list[int]:
        """Exit codes of all ranks; as srun and torchrun do, the others are ended when one is lost and they linger."""
        lost_at = float("inf")
        while any(process.poll() is None for process in self.processes):
            if any(process.returncode not in (None, 0, EXIT_STOPPED) for process in self.processes):
                lost_at = min(lost_at, time.monotonic())
            if time.monotonic() > lost_at + GRACE:
                for process in self.processes:
                    process.kill()
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def reached(self) -> int:
        """The last step in the log."""
        return max((row["step"] for row in read_metrics(self.folder / "metrics.jsonl", "train")), default=0)

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step_*.pt"))


def kill(run: Run) -> dict[str, Any]:
    """Start the run, hit a random rank at a random moment, and see what is left."""
    before = run.reached()
    number = random.choice(SIGNALS)
    moment = random.choices(["start-up", "step", "saving"], weights=[1, 4, 3])[0]
    run.start()
    if moment == "start-up":
        time.sleep(random.uniform(0.2, 4.0))
    else:
        wait_for(run, moment, before)
    begin = time.perf_counter()
    random.choice(run.processes).send_signal(number)
    codes = run.wait()
    seconds = time.perf_counter() - begin
    reached = run.reached()
    whole = [path for path in run.checkpoints() if verify(path) is None]
    saved = int(whole[-1].stem.removeprefix("step_")) if whole else 0
    damaged = [path for path in run.checkpoints() if path not in whole and sidecar(path).is_file()]
    stopped = all(code == EXIT_STOPPED for code in codes)
    return {
        "signal": number.name.removeprefix("SIG"),
        "moment": moment,
        "reached": reached,
        "saved": saved,
        "lost": max(reached - saved, 0) if reached != before else 0,  # before the first step nothing new is there
        "damaged": len(damaged),
        "unfinished": len(run.checkpoints()) - len(whole) - len(damaged),
        "saved_itself": stopped,
        "seconds": round(seconds, 2),
    }


def wait_for(run: Run, moment: str, before: int) -> None:
    """Wait for a random number of further steps, then for a random part of one, or for a checkpoint being written."""
    target = before + random.randint(1, EVERY)
    while run.reached() < target:
        assert all(process.poll() is None for process in run.processes), run.log.read_text()[-2000:]
        time.sleep(0.01)
    if moment == "step":
        time.sleep(random.uniform(0, 0.3))
        return
    deadline = time.monotonic() + 5
    while not list((run.folder / "checkpoints").glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(random.choice([0.0, 0.002, 0.01]))


def sidecar(path: Path) -> Path:
    """The file with the checkpoint's checksum."""
    return path.with_name(path.name + ".sha256")


def compare(straight: Path, killed: Path, steps: int) -> dict[str, Any]:
    """How the final checkpoints and the logs of two runs differ."""
    states = [load_file(folder / "checkpoints" / f"step_{steps:08d}.pt") for folder in (straight, killed)]
    leaves = [dict(tensors(state)) for state in states]
    assert leaves[0].keys() == leaves[1].keys()
    apart = [float((leaves[0][key].double() - leaves[1][key].double()).abs().max()) for key in leaves[0]]
    logs = [read_metrics(folder / "metrics.jsonl", "train") for folder in (straight, killed)]
    return {
        "tensors": len(apart),
        "tensors_that_differ": sum(value > 0 for value in apart),
        "largest_difference": max(apart),
        "log_lines_that_differ": sum(one != other for one, other in zip(*logs, strict=True)),
    }


def tensors(state: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every non-empty tensor of a checkpoint: weights, optimizer moments, generators."""
    if isinstance(state, torch.Tensor):
        return [(name, state)] if state.numel() else []
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return [leaf for key, value in items for leaf in tensors(value, f"{name}.{key}")]


def summary(kills: list[dict[str, Any]], difference: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The figures, and whether what the drill expects holds."""
    lost = {name.name: [k["lost"] for k in kills if f"SIG{k['signal']}" == name.name] for name in SIGNALS}
    figures = {
        "ranks": ranks,
        "kills_delivered": len(kills),
        **{f"{name}: number, lost steps": f"{len(values)}, {values}" for name, values in lost.items()},
        "damaged_checkpoints": sum(k["damaged"] for k in kills),
        "interrupted_writes": sum(k["unfinished"] for k in kills),
        **difference,
    }
    # In its start-up a run has no handler yet: a signal ends it there, with nothing to lose.
    figures["holds"] = (
        not figures["damaged_checkpoints"]
        and not difference["tensors_that_differ"]
        and not difference["log_lines_that_differ"]
        and all(steps <= EVERY for steps in lost["SIGKILL"])
        and not any(k["lost"] for k in kills if k["saved_itself"])
        and not any(k["lost"] for k in kills if k["signal"] != "KILL" and k["moment"] != "start-up")
    )
    return figures


if __name__ == "__main__":
    sys.exit(main())
