"""Runs workers, notices what ends them, and gathers what they found. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limits import HANG_SECONDS, LEAST_PAST_HEADER, allowed_bytes

WORKER = Path(__file__).with_name("worker.py")
# One allocator, and large blocks go back when they are freed: what is kept for later would hide what an input takes.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
WATCHDOG = "Timeout ("  # what faulthandler writes before it ends the worker with 1
Part = tuple[str, int, int]  # target, first seed, number of seeds; below zero is the corpus
OUTSIDE, HANG, CRASH, ALLOCATION = "outside the family", "hang", "crash", "over-allocation"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What must not happen, and what brings it about.

        Attributes:
            kind: WATCHDOG = "Timeout ("  # what faulthandler writes before it ends the worker with 1
    Part = tuple[str, int, int]  # target, first seed, number of seeds; below zero is the corpus
    OUTSIDE, HANG, CRASH or ALLOCATION.
            target, seed: `fuzz.py --target TARGET --seed SEED --count 1` shows it again.
            what: the exception, the signal, or the sizes.
            where: the last call of this project, and the innermost ones.
    """

    kind: str
    target: str
    seed: int
    what: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"--target {self.target} --seed {self.seed}: {self.kind}: {self.what} [{' < '.join(self.where)}]"


@dataclasses.dataclass
class Result:
    """The figures of one target."""

    target: str
    inputs: int = 0
    past_header: int = 0
    refused: int = 0
    accepted: int = 0
    worst_seconds: float = 0.0
    worst_grown: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def share_past_header(self) -> float:
        """Of the inputs."""
        return self.past_header / max(1, self.inputs)

    @property
    def problems(self) -> list[str]:
        """Everything that fails this target; empty when it passes."""
        shallow = [f"{self.target}: only {self.share_past_header:.0%} of the inputs get past the first header check"]
        return [str(f) for f in self.findings] + shallow * (self.share_past_header < LEAST_PAST_HEADER)

    def count(self, kind: str) -> int:
        """The findings of a kind."""
        return sum(finding.kind == kind for finding in self.findings)

    def add(self, seed: int, row: Mapping[str, Any]) -> None:
        """Take up what a worker says of one input."""
        self.inputs += 1
        self.past_header += row["declared"] is not None
        self.refused += row["outcome"] == "refused"
        self.accepted += row["outcome"] == "accepted"
        self.worst_seconds = max(self.worst_seconds, row["seconds"])
        self.worst_grown = max(self.worst_grown, row["grown"])
        if row["outcome"] == "outside":
            self.findings.append(Finding(OUTSIDE, self.target, seed, row["error"], tuple(row["where"])))
        if row["grown"] > allowed_bytes(row["declared"]):
            what = f"{row['grown']} bytes where its header declares {row['declared']}"
            self.findings.append(Finding(ALLOCATION, self.target, seed, what))


def fuzz(plan: Iterable[Part], *, hang_seconds: float = HANG_SECONDS) -> dict[str, Result]:
    """Read all inputs of a plan, by target.

    A worker that an input ends is followed by another one. What seemed to hang is tried once more: the machine may
    have been busy with something else.
    """
    plan = list(plan)
    results = {name: Result(name) for name, _, _ in plan}
    tried = None
    while plan:
        with tempfile.TemporaryFile("w+") as errors:
            reached, code = _work(plan, results, errors, hang_seconds)
            errors.seek(0)
            text = errors.read()
        if not code:
            break
        if reached is None or (code > 0 and WATCHDOG not in text):
            raise RuntimeError(f"the fuzzer itself fails, at {reached or 'its start'}:\n{text[-4000:]}")
        place, seed = reached
        name, first, count = plan[place]
        again = WATCHDOG in text and tried != (name, seed)
        tried = name, seed
        if not again:
            results[name].inputs += 1
            results[name].findings.append(_ending(name, seed, code, text))
        begin = seed if again else seed + 1
        plan = [(name, begin, first + count - begin), *plan[place + 1 :]]
    return results


def _work(
    plan: list[Part], results: Mapping[str, Result], errors: Any, hang_seconds: float
) -> tuple[tuple[int, int] | None, int]:
    """Let a worker do a plan. Returns the place in it and the seed that it began last, and its exit code."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(plan), str(writing), str(hang_seconds)],
        pass_fds=(writing,),
        stdout=errors,
        stderr=errors,
        env=os.environ | ENVIRONMENT,
    )
    os.close(writing)
    reached = None
    try:
        with os.fdopen(reading) as lines:
            for line in lines:
                row = json.loads(line)
                if isinstance(row, list):
                    reached = (row[0], row[1])
                else:
                    assert reached is not None, "a row of no input"
                    results[plan[reached[0]][0]].add(reached[1], row)
        return reached, process.wait()
    finally:
        process.kill()
        process.wait()


def _ending(target: str, seed: int, code: int, errors: str) -> Finding:
    """What ended a worker: its watchdog, or a signal."""
    where = tuple(line.strip() for line in errors.splitlines() if line.startswith("  File "))[:4]
    if WATCHDOG in errors:
        return Finding(HANG, target, seed, "not done in time", where)
    return Finding(CRASH, target, seed, signal.Signals(-code).name, where)
