"""Kill `featinv invert`, `featinv eval` and a cache that is being filled at random moments, and start them again.

    python tests/jobs/kill_everywhere.py FOLDER [--kills 20] [--seed 0] [--jobs invert eval cache] [--built-in FOLDER]

Each job is killed that many times with signal 9 and as often with 15, each time in a new folder, then started once
more, and its results are compared with those of a run that nobody disturbed. Prints a line of JSON for each job and
signal; the exit code is 1 where a result differed. `--built-in` names another folder of built-in engines.

The children are forks of this process, which has imported everything by then: that would take most of the time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import featinv_fast.commands.invert  # noqa: F401 -- what the children need, imported once
from featinv_fast import demo
from featinv_fast.cli import main as featinv
from featinv_fast.commands.evaluate_options import FINISHED
from featinv_fast.demo import builtin
from featinv_fast.features import small_backbones
from featinv_fast.jobs.ledger import read_job
from featinv_fast.jobs.stop import termination
from featinv_fast.train.cache import precompute

TERMINATED = 143
IMAGES = 6


def run_invert(inputs: Path, out: Path) -> int:
    """Two images at a time."""
    return featinv(
        ["invert", "--images", str(inputs), "--out", str(out), "--batch-size", "2", "--threads", "1", "--quiet"]
    )


def run_eval(inputs: Path, out: Path) -> int:
    """Three images at a time, in two settings; an evaluation that came to its end before the kill is not repeated."""
    if FINISHED in read_job(out)[1]:
        return 0
    arguments = ["eval", "--images", str(inputs), "--out", str(out), "--batch-size", "3", "--threads", "1", "--quiet"]
    return featinv([*arguments, "--settings", "lcm:1", "lcm:2", "--pictures", "3", "--no-plot"])


def run_cache(_: Path, out: Path) -> int:
    """Twelve batches of two arrays."""

    def compute(indices: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(0.01)
        numbers = torch.from_numpy(indices).double()
        return {"mean": numbers[:, None] * torch.arange(500), "log_variance": torch.sin(numbers)[:, None]}

    with termination():
        try:
            precompute(compute, 64 * 11 + 5, folder=out, identity={"job": "cache"}, progress=False)
        except KeyboardInterrupt:
            return TERMINATED
    return 0


JOBS = {"invert": run_invert, "eval": run_eval, "cache": run_cache}


def results(out: Path) -> dict[str, object]:
    """What must be the same: all files, without times and what is drawn from them.

    The images of batches are removed last, when everything is there: what a kill leaves of them is in nobody's way.
    """
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.parent.name != "slices"):
        name = path.relative_to(out).as_posix()
        found[name] = path.read_bytes()
        if path.name in ("ledger.jsonl", "page.html"):  # the order of what was done, and seconds
            found[name] = None
        if path.name == "report.json":
            rows = json.loads(path.read_text())["rows"]
            found[name] = [{k: v for k, v in row.items() if k not in ("created", "seconds_per_image")} for row in rows]
    return found


def started(work: Callable[[], int]) -> int:
    """The process number of a child that works and ends with the exit code."""
    if child := os.fork():
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = work()
    finally:
        os._exit(code)


def working(child: int, out: Path) -> None:
    """Wait until the child has begun in its folder, or has ended; what it loads before that nobody misses."""
    while not out.exists() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)


def ended(child: int) -> int:
    """The child's exit code, the negative signal where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_and_started_again(
    work: Callable[[Path], int], out: Path, number: signal.Signals, moment: float, expected: dict[str, object]
) -> dict[str, object]:
    """Kill a run at a moment and start it again; what happened."""
    child = started(lambda: work(out))
    working(child, out)
    time.sleep(moment)
    os.kill(child, number)
    code = ended(child)
    after_kill = len(list(out.rglob("*"))) if out.exists() else 0
    again = ended(started(lambda: work(out)))
    found = results(out) if again == 0 else {}
    differing = [name for name in found.keys() | expected.keys() if found.get(name, 0) != expected.get(name, 0)]
    return {"code": code, "files_after_kill": after_kill, "code_again": again, "differing": sorted(differing)}


def main() -> int:
    """Kill all jobs; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--built-in", type=Path)
    options = parser.parse_args()
    if options.built_in is not None:
        builtin.FOLDER = options.built_in
        small_backbones.WEIGHTS["featinv_convnext"] = options.built_in / builtin.BACKBONE
    inputs = options.folder / "images"
    for kind in ("a", "b"):
        (inputs / kind).mkdir(parents=True)
    for number, image in enumerate(np.asarray(demo.load_scenes(IMAGES).images)):
        Image.fromarray(image).save(inputs / "ab"[number % 2] / f"{number}.png")
    chance = random.Random(options.seed)
    failed = False
    for name in options.jobs:

        def work(out: Path, run: Callable[[Path, Path], int] = JOBS[name]) -> int:
            return run(inputs, out)

        whole = options.folder / name / "whole"
        child = started(functools.partial(work, whole))
        working(child, whole)
        begun = time.perf_counter()
        assert ended(child) == 0, f"{name} fails undisturbed"
        seconds = time.perf_counter() - begun
        expected = results(whole)
        for number in (signal.SIGKILL, signal.SIGTERM):
            runs = [
                killed_and_started_again(
                    work, options.folder / name / f"{number}-{kill}", number, chance.uniform(0, seconds), expected
                )
                for kill in range(options.kills)
            ]
            codes = {-signal.SIGKILL, 0} if number is signal.SIGKILL else {TERMINATED, -signal.SIGTERM, 0}
            wrong = [run for run in runs if run["differing"] or run["code_again"] or run["code"] not in codes]
            failed |= bool(wrong)
            row = {
                "job": name,
                "signal": int(number),
                "kills": len(runs),
                "came_through": sum(run["code"] == 0 for run in runs),
                "with_files_after_the_kill": sum(bool(run["files_after_kill"]) for run in runs),
                "same_at_the_end": len(runs) - len(wrong),
                "seconds_of_work": round(seconds, 2),
                "wrong": wrong,
            }
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
