"""How the backends say that memory is exhausted, and how much of it is free."""

from __future__ import annotations

import torch

# How an exhausted memory shows itself beside MemoryError and torch's own exception: the C++ libraries and their
# allocators on CPUs, CUDA, cuBLAS, and onnxruntime, whose exceptions have no common class but `Exception`.
_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad allocation",
    "bad_alloc",
    "alloc_failed",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of torch or onnxruntime says that memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error).lower() for text in _MESSAGES)


def free_memory(device: torch.device) -> str:
    """How much memory is free on `device`, for messages."""
    if device.type == "cuda":
        return f"{torch.cuda.mem_get_info(device)[0] / 2**20:,.0f} MiB free on {device}"
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 a kernel interface
            fields = dict(line.split(":", 1) for line in file)
        return f"{int(fields['MemAvailable'].split()[0]) / 2**10:,.0f} MiB available"
    except (OSError, KeyError, ValueError):
        return "free memory unknown"
