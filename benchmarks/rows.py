"""Rows of results: what every row says about the machine and the code, how it is written, how it is shown.

Standard library only: the scripts that watch the memory of others import it, and should be small themselves.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("featinv-fast", "torch", "onnxruntime", "onnx", "numpy")


def environment(threads: int) -> dict[str, Any]:
    """What makes a row stand alone: date, code, versions and machine."""
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "revision": _git("rev-parse", "HEAD"),
        "modified": None if status is None else bool(status),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": _processor(),
        "logical_cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "threads": threads,
    }


def available_cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of at least two values."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": _rounded(statistics.median(values)), "p20": _rounded(p20), "p80": _rounded(p80)}


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def table(cells: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns, the first one to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(line, others, strict=True))])
        for name, *line in cells
    )


def _rounded(value: float) -> float:
    """Five digits: more than a timing holds, and few enough to read."""
    return float(f"{value:.5g}")


def _git(*arguments: str) -> str | None:
    """What git says about this repository; None outside of one."""
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
