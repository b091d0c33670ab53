"""The one thread of the process that warms work up for CUDA graphs and captures it, by algorithms that were timed.

Torch asks cuDNN once for the algorithm of a convolution and keeps the answer, by shapes, layouts, types and alignment,
for the thread that asked (aten/src/ATen/native/cudnn/Conv_v8.cpp). Whether algorithms are timed is no part of that key:
where a shape ran untimed before, `torch.backends.cudnn.benchmark` changes nothing. A thread that never runs anything
untimed has timed algorithms for every graph, whatever ran elsewhere, and times each shape once in the process.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

# Starts its thread with the first work.
_thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="featinv-capture")


def in_capture_thread(work: Callable[[], T], device: torch.device) -> T:
    """What `work` returns or raises there.

    Ctrl-C waits for its end: a second thread must not use the same streams and modules meanwhile, and half a capture is
    of no use to anybody. So keep `work` short.

    Args:
        work: on the GPU, in inference mode, on the default stream to begin with.
        device: the GPU, with its number: the thread has a current device of its own.
    """
    future = _thread.submit(contextvars.copy_context().run, _timed, work, device)
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            concurrent.futures.wait([future])
            break
        except KeyboardInterrupt as exception:
            interrupted = exception
    if interrupted is not None:
        raise interrupted
    try:
        return future.result()
    finally:
        del future  # an exception holds this frame, and through it what it could not allocate beside


def _timed(work: Callable[[], T], device: torch.device) -> T:
    with torch.cuda.device(device), algorithms_timed(), torch.inference_mode():
        return work()


@contextlib.contextmanager
def algorithms_timed() -> Iterator[None]:
    """Let cuDNN time its algorithms for each convolution that is new to this thread, and keep the fastest.

    A graph has one shape for good, and what was chosen is replayed with it. It is nowhere else set: where batches of
    any size come, each new one would be timed first. The setting is one of the process, so it is given back.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
