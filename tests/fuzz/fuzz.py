"""Damage real files thousands of times and see that every reader and command refuses them in one line.

    python tests/fuzz/fuzz.py --cases 5000                     # on files made here
    python tests/fuzz/fuzz.py --seeds DIR --cases 5000         # on those and on real files below 2 MB
    python tests/fuzz/fuzz.py --target segment --only 4711     # one case again, with its traceback

Cases run in a worker process with limits on time and address space; a crash, a hang, an exception that is no
DinoCellError, a message that is no single clear line, or memory past the limit is a finding. Exit code 1 if any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = {"segment": 60, "curate": 60}
DEFAULT_SECONDS = 20
"""CPU time a case may take."""
PATIENCE = 20
"""Times the CPU time that a case may take by the clock."""
STARTUP = 120
MORE_MEMORY = 3 * 2**30
"""Address space that a worker may take on top of what it has before the first case."""
GROWTH = 2**30
"""Resident memory by which one case may push the highest mark up."""


def main() -> int:
    arguments = parse()
    if arguments.worker:
        return work(arguments)
    with tempfile.TemporaryDirectory(prefix="dinocell-fuzz-") as folder:
        sys.path.insert(0, str(HERE))
        import targets

        arguments.models, arguments.scratch = Path(folder, "models"), Path(folder, "scratch")
        targets.write_models(arguments.models)
        targets.write_corpus(Path(folder, "corpus"))
        arguments.seeds = [*(arguments.seeds or []), Path(folder, "corpus")]
        names = list(targets.TARGETS) if arguments.target is None else arguments.target.split(",")
        if arguments.only is not None:
            bench = targets.Bench(arguments.seeds, arguments.models, arguments.keep, arguments.seed)
            print(bench.run(names[0], arguments.only))
            return 0
        return drive(arguments, names)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=Path, action="append", help="folder of whole files, beside those written here")
    parser.add_argument("--cases", type=int, default=1000, help="cases, over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", help="some of read,labels,seg_npy,segment,curate,prepare,weights")
    parser.add_argument("--only", type=int, help="run this case alone, here")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-case"), help="with --only: folder of the case")
    parser.add_argument("--findings", type=Path, help="write findings here, one JSON object a line")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(arguments: argparse.Namespace) -> int:
    """Run the cases named on standard input; one JSON line of outcome each."""
    sys.path.insert(0, str(HERE))
    import targets

    answers, sys.stdout = sys.stdout, sys.stderr
    bench = targets.Bench(arguments.seeds, arguments.models, arguments.scratch, arguments.seed)
    for name in ("read", "segment", "curate"):  # compile and load what a first case would
        bench.run(name, 10**9)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        name, number = line.split()
        faulthandler.dump_traceback_later(3 * SECONDS.get(name, DEFAULT_SECONDS))
        print(json.dumps(outcome(bench, name, int(number))), file=answers, flush=True)
        faulthandler.cancel_dump_traceback_later()
    return 0


def outcome(bench: Any, name: str, number: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    try:
        found = {"said": bench.run(name, number)}
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = {"finding": f"{type(error).__name__}: {error}"[:500], "where": f"{where.filename}:{where.lineno}"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if grown > GROWTH and "finding" not in found:
        found = {"finding": f"memory grew by {grown / 2**20:.0f} MiB", "where": found["said"]}
    return {"target": name, "case": number, "seconds": round(time.monotonic() - started, 2), **found}


class Worker:
    """The process that runs cases; started again when it dies or hangs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        words = [sys.executable, __file__, "--worker", "--seed", str(arguments.seed)]
        for name in ("models", "scratch"):
            words += [f"--{name}", str(getattr(arguments, name))]
        words += [f"--seeds={folder}" for folder in arguments.seeds]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1
        )
        if self.answer(STARTUP) is None:
            raise SystemExit(f"the worker does not start: {self.last_words()}")

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next outcome; None when the worker died, or took more CPU time, or far more time, than allowed."""
        assert self.process.stdout is not None
        used, started = self.cpu_seconds(), time.monotonic()
        while time.monotonic() - started < PATIENCE * seconds and self.cpu_seconds() - used < seconds:
            if select.select([self.process.stdout], [], [], 0.5)[0]:
                line = self.process.stdout.readline()
                return json.loads(line) if line else None
        return None

    def cpu_seconds(self) -> float:
        """CPU time of the worker so far: a busy machine is no hang."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, name: str, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {number}\n")
        found = self.answer(SECONDS.get(name, DEFAULT_SECONDS))
        if found is not None:
            return found
        died = self.process.poll()
        what = f"crash, exit code {died}" if died is not None else "hang"
        self.close()
        return {"target": name, "case": number, "finding": what, "where": self.last_words()}

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-1500:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def drive(arguments: argparse.Namespace, names: list[str]) -> int:
    """Run the cases, print and write the findings, and say at the end what became of the rest."""
    worker, findings, ends = Worker(arguments), [], Counter[str]()
    slowest: dict[str, Any] = {"seconds": 0}
    for number in range(arguments.first, arguments.first + arguments.cases):
        found = worker.run(names[number % len(names)], number)
        if "finding" in found:
            findings.append(found)
            print(json.dumps(found), flush=True)
            if arguments.findings:
                with arguments.findings.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
        else:
            ends["read" if found["said"] == "read" else "refused"] += 1
            slowest = max(slowest, found, key=lambda one: one["seconds"])
        if worker.process.poll() is not None:
            worker = Worker(arguments)
    worker.close()
    print(f"{arguments.cases} cases: {dict(ends)}, {len(findings)} findings; slowest {json.dumps(slowest)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
