"""Runs a command and watches the memory of it and of all its descendants. Linux only: it reads what /proc counts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence

import psutil

INTERVAL = 0.02  # seconds between two looks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished command.

    Attributes:
        seconds: wall time.
        peak_resident: bytes; the largest resident set of one of its processes, as the kernel counts it. It holds
            pages of memory-mapped files, which the kernel shares between processes and drops when memory is short.
        peak_anonymous: bytes; the largest sum over its processes of what they allocated themselves, sampled.
        output: what it wrote to stdout.
    """

    seconds: float
    peak_resident: int
    peak_anonymous: int
    output: str


def run_measured(command: Sequence[str], threads: int) -> Measured:
    """Run `command` with `threads` threads in torch's operations; its stderr passes through.

    Raises:
        SystemExit: the command failed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        peak_anonymous = 0
        try:
            # wait4, because it alone tells the peak of this one child.
            while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
                peak_anonymous = max(peak_anonymous, _anonymous(process.pid))
                time.sleep(INTERVAL)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        _, status, usage = done
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}\n{text}")
    return Measured(seconds=seconds, peak_resident=usage.ru_maxrss * 1024, peak_anonymous=peak_anonymous, output=text)


def _anonymous(pid: int) -> int:
    """Bytes that a process and its descendants allocated themselves: resident and not of a file."""
    total = 0
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss - memory.shared
    return total
