"""What a row of measurements needs to stand alone: the machine, the code, percentiles and memory."""

from __future__ import annotations

import datetime as dt
import functools
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
PACKAGES = (
    "featinv-fast",
    "torch",
    "numpy",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "triton",
    "timm",
    "tokenizers",
    "diffusers",
)


def environment(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Date, code, versions and machine, as plain data.

    Args:
        device: what computes; an NVIDIA GPU is described under "gpu".
        threads: CPU threads of one operation; `None` is torch's own number.
    """
    installed = {name: version for name, version in package_versions().items() if version is not None}
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **revision(),
        "versions": {"python": platform.python_version(), **installed},
        "device": device_name(device),
        **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        "processor": processor(),
        "logical_cores": available_cores(),
        "threads": threads or torch.get_num_threads(),
        "platform": platform.platform(),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of at least two values, with five digits."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {name: rounded(v) for name, v in (("median", statistics.median(values)), ("p20", p20), ("p80", p80))}


def rounded(value: float, digits: int = 5) -> float:
    """`value` with so many significant digits: more than a measurement holds, few enough to read."""
    return float(f"{value:.{digits}g}")


def relative_error(given: Tensor, expected: Tensor) -> float:
    """|given - expected| / |expected| in float64; NaN where one of them is not finite."""
    given, expected = given.double().cpu(), expected.double().cpu()
    return ((given - expected).norm() / expected.norm()).item()


def device_name(device: torch.device) -> str:
    """The name that its maker gave the GPU or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


@functools.cache
def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def package_versions() -> dict[str, str | None]:
    """The versions of this package and of those that it works with; `None` for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def revision() -> dict[str, Any]:
    """The git revision of this code, and whether it was changed since; both `None` where the code is not in git.

    A package that was installed into an environment inside somebody's repository is not part of that repository. Git
    is asked once: what runs is the code that was imported.
    """
    package = Path(__file__).parent
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"revision": None, "modified": None}
    # Rows of results are written while this is asked for; they change no code.
    status = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!*.jsonl")
    return {"revision": _git(package, "rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


class PeakMemory:
    """Largest memory since it was made or reset, in GiB.

    Args:
        device: of a GPU, torch's own allocations have a peak; those of other libraries show in what the whole GPU
            holds at the moment of asking, which is close to their peak, since their pools do not shrink.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget peaks; the peak of a process on a CPU cannot be forgotten."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> dict[str, float]:
        """The row's entries: "process_resident_gib" and, on a GPU, "gpu_allocated_gib" and "gpu_used_gib"."""
        peaks = {}
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            peaks["gpu_allocated_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
            peaks["gpu_used_gib"] = (total - free) / GIB
        resident = _peak_resident()
        if resident is not None:
            peaks["process_resident_gib"] = resident / GIB
        return {name: round(value, 3) for name, value in peaks.items()}


def _peak_resident() -> int | None:
    """Bytes; `None` where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory_gib": round(properties.total_memory / GIB, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
