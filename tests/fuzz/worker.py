"""The process that reads mutants. Run by `harness.py`; each input gives JSON lines on a descriptor of its own.

What it measures is growth: of this process' resident memory at its peak, above what it was before the input.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from limits import ADDRESS_SPACE, MESSAGE_CHARACTERS
from target import Target
from targets import corpus, open_target

from featinv_fast.errors import FeatInvError

WARM_UP = 3  # inputs of each target that are read before: imports and first uses are not what is measured


def main(plan: list[tuple[str, int, int]], descriptor: int, hang_seconds: float) -> None:
    """Read the inputs of a plan: target, first seed, count.

    Writes [place in the plan, seed] before an input is read, and its row (see `one_input`) afterwards.
    """
    opened: dict[str, Target] = {}
    with tempfile.TemporaryDirectory(prefix="featinv-fuzz-") as scratch, os.fdopen(descriptor, "w") as output:
        folder = Path(scratch, "input")
        for place, (name, first, count) in enumerate(plan):
            if name not in opened:
                Path(scratch, name).mkdir()
                opened[name] = open_target(name, Path(scratch, name))
                _limit_address_space()
                for number in range(WARM_UP):
                    _measured(opened[name], make_input(opened[name], f"{name} warm {number}", folder))
            for seed in range(first, first + count):
                print(json.dumps([place, seed]), file=output, flush=True)
                path = make_input(opened[name], seed, folder)
                faulthandler.dump_traceback_later(hang_seconds, exit=True)
                row = _measured(opened[name], path)
                faulthandler.cancel_dump_traceback_later()
                print(json.dumps(row), file=output, flush=True)


def make_input(target: Target, seed: int | str, folder: Path) -> Path:
    """The input of a seed, in an empty folder: a mutant, or for a seed below zero one of the corpus."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if isinstance(seed, int) and seed < 0:
        return target.kept(corpus(target.name)[-seed - 1], folder)
    return target.mutant(Random(f"{target.name} {seed}"), folder)


def _measured(target: Target, path: Path) -> dict[str, Any]:
    """Read an input.

    Returns:
        `outcome` ("refused", "accepted" or "outside"), `error`, `where`, `declared`, `seconds` and `grown` (bytes).
    """
    row: dict[str, Any] = {"declared": target.declared(path), "outcome": "accepted", "error": "", "where": []}
    ignored: list[str] = []  # exceptions in destructors: Python goes on, but users see them
    sys.unraisablehook = lambda event: ignored.append(f"{event.exc_value!r} in {event.object!r}")
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for category in target.warns:
                warnings.simplefilter("ignore", category)
            target.run(path)
    except FeatInvError as error:
        row |= {"outcome": "refused", "error": f"{type(error).__name__}: {error}"[:1000]}
        if len(str(error)) > MESSAGE_CHARACTERS:
            row |= {"outcome": "outside", "error": f"a message of {len(str(error))} characters", "where": _where(error)}
    except BaseException as error:  # noqa: BLE001 -- whatever it is, a user would see it
        row |= {"outcome": "outside", "error": f"{type(error).__name__}: {error}"[:500], "where": _where(error)}
    row |= {"seconds": time.perf_counter() - begin, "grown": _status("VmHWM") - before}
    if ignored:
        row |= {"outcome": "outside", "error": ignored[0][:500], "where": ["in a destructor"]}
    return row


def _where(error: BaseException) -> list[str]:
    """The last call of this project, and the innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "featinv" in frame.filename and "site-packages" not in frame.filename]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in [*ours[-1:], *frames[-2:]]]


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _limit_address_space() -> None:
    """What would take the machine's memory fails here instead."""
    limit = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    faulthandler.enable()
    main(json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
