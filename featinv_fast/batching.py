"""Splitting work into batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from featinv_fast.errors import OutOfMemoryError

logger = logging.getLogger(__name__)

# How an exhausted memory shows itself, beside MemoryError and torch's own exception.
_MESSAGES = ("out of memory", "can't allocate memory", "failed to allocate memory", "bad allocation", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or onnxruntime says that memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


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


def run_in_batches(rows: Sequence[int], size: int, device: torch.device, work: Callable[[Sequence[int]], None]) -> int:
    """Call `work` on consecutive batches of `rows`, halving them whenever memory runs out.

    Args:
        rows: what to work on, in order.
        size: largest batch to begin with.
        device: where the memory is, for messages.
        work: must leave no trace when it runs out of memory.

    Returns:
        The batch size that fitted, to begin with next time.

    Raises:
        OutOfMemoryError: not even a batch of one fits.
    """
    done = 0
    while done < len(rows):
        batch = rows[done : done + size]
        try:
            work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise OutOfMemoryError(
                    "not even one image fits into memory",
                    given=f"{free_memory(device)}; the allocator said: {str(error).splitlines()[0]}",
                    remedy="free memory, use a half-precision engine, or another device",
                ) from error
            size = len(batch) // 2
            logger.warning("out of memory with %d images at once; going on with %d", len(batch), size)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        done += len(batch)
    return size
