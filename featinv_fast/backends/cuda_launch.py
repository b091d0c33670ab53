"""Launching work on a CUDA stream of our own: call by call at first, then as one captured CUDA graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Launches work on the stream of this handle. It must not wait for the GPU.
Enqueue = Callable[[int], None]


class CudaLauncher:
    """Launches one kind of work again and again, ordered with the caller's stream. For one thread.

    Work that comes a second time with the same key is captured, and from then on replayed as a CUDA graph; another key
    starts over. The first time runs call by call, because libraries prepare themselves then. Called while the
    caller's stream is being captured, the work becomes part of that graph.

    Written for NVIDIA GPUs and checked against a double of torch's stream functions; not yet run on a GPU.

    Args:
        device: the GPU.

    Attributes:
        handle: of the stream, for libraries.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.handle: int = self._stream.cuda_stream
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = True

    def __call__(self, key: Hashable, enqueue: Enqueue) -> None:
        """Launch `enqueue`; `key` stands for everything that would be frozen in a graph: shapes and addresses."""
        caller = torch.cuda.current_stream(self._device)
        if torch.cuda.is_current_stream_capturing():
            enqueue(caller.cuda_stream)
            return
        self._stream.wait_stream(caller)
        if key != self._key:
            self._key, self._graph = key, None
            enqueue(self.handle)
        else:
            if self._graph is None and self._may_capture:
                self._graph = self._capture(enqueue)
            if self._graph is None:
                enqueue(self.handle)
            else:
                with torch.cuda.stream(self._stream):
                    self._graph.replay()
        caller.wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait until everything launched is done."""
        self._stream.synchronize()

    def _capture(self, enqueue: Enqueue) -> torch.cuda.CUDAGraph | None:
        """The work as a graph, or `None` where it cannot be captured; then it is not tried again."""
        try:
            return capture(lambda: enqueue(self.handle), self._stream)
        except RuntimeError as error:
            logger.warning("no CUDA graph, launching call by call: %s", error)
            self._may_capture = False
            return None


@contextlib.contextmanager
def algorithms_timed() -> Iterator[None]:
    """Let cuDNN time its algorithms for each convolution of a shape that is new to it, and keep the fastest.

    For the run before a capture and the capture itself: a graph has one shape for good, and what was chosen is
    replayed with it. It is nowhere else set: where batches of any size come, each new one would be timed first. The
    setting is one of the process, so it is given back.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def capture(work: Callable[[], object], stream: torch.cuda.Stream, pool: Any = None) -> torch.cuda.CUDAGraph:
    """What `work` launches, as a graph; nothing of it runs yet.

    Args:
        work: has run before, so that the libraries that it calls are ready. It must not wait for the GPU.
        stream: to capture on.
        pool: `torch.cuda.graph_pool_handle()` of graphs that may use the same memory for what only lives within them.

    Raises:
        RuntimeError: the work cannot be captured, or memory ran out.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph
