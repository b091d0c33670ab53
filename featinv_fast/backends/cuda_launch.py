"""Launching work on a CUDA stream of our own: call by call at first, then as one captured CUDA graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Launches work on the stream of this handle. It must not wait for the GPU.
Enqueue = Callable[[int], None]


class CudaLauncher:
    """Launches one kind of work again and again, ordered with the caller's stream. For one thread.

    Work that comes a second time from the same owner is captured, and from then on replayed as a CUDA graph; another
    owner starts over. The first time runs call by call, because libraries prepare themselves then. Called while the
    caller's stream is being captured, the work becomes part of that graph.

    A graph has the addresses of what it was captured with. It keeps their owner, so none of them can be freed while it
    may be replayed, and goes when its owner is given up or anything fails.

    Written for NVIDIA GPUs and checked against a double that keeps CUDA's rules; not yet run on a GPU.

    Args:
        device: the GPU.

    Attributes:
        handle: of the stream, for libraries.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.handle: int = self._stream.cuda_stream
        self._owner: object = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = True

    def __call__(self, owner: object, enqueue: Enqueue) -> None:
        """Launch `enqueue`.

        Args:
            owner: of everything that would be frozen in a graph, shapes and memory; never `None`, and told apart from
                others by identity.
            enqueue: the work.
        """
        if torch.cuda.is_current_stream_capturing():
            enqueue(torch.cuda.current_stream(self._device).cuda_stream)
            return
        with self.ordered():
            try:
                self._launch(owner, enqueue)
            except BaseException:
                self.forget()
                raise

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        """Inside, torch's operations go to the stream, after what the caller has queued and before what it queues next.

        What the work reads and writes is touched nowhere else: callers on several streams come one after another.
        """
        caller = torch.cuda.current_stream(self._device)
        if caller == self._stream or torch.cuda.is_current_stream_capturing():
            yield
            return
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            caller.wait_stream(self._stream)

    def forget(self) -> None:
        """Give up the graph, then its owner: the next launch runs call by call."""
        self._graph = None
        self._owner = None

    def synchronize(self) -> None:
        """Wait until everything launched is done."""
        self._stream.synchronize()

    def _launch(self, owner: object, enqueue: Enqueue) -> None:
        if owner is not self._owner:
            self.forget()
            enqueue(self.handle)
            self._owner = owner  # only now: what failed has prepared nothing
            return
        if self._graph is None and self._may_capture:
            self._graph = self._capture(enqueue)
        if self._graph is None:
            enqueue(self.handle)
        else:
            self._graph.replay()

    def _capture(self, enqueue: Enqueue) -> torch.cuda.CUDAGraph | None:
        """The work as a graph, or `None` where it cannot be captured; then it is not tried again."""
        try:
            return capture(lambda: enqueue(self.handle), self._stream)
        except RuntimeError as error:
            logger.warning("no CUDA graph, launching call by call: %s", error)
            self._may_capture = False
            return None


def capture(work: Callable[[], object], stream: torch.cuda.Stream, pool: Any = None) -> torch.cuda.CUDAGraph:
    """What `work` launches, as a graph; nothing of it runs yet. Whatever is raised, torch is left as it was.

    Args:
        work: has run before, so that the libraries that it calls are ready. It must not wait for the GPU.
        stream: to capture on.
        pool: `torch.cuda.graph_pool_handle()` of graphs that may use the same memory for what only lives within them.

    Raises:
        RuntimeError: the work cannot be captured, or memory ran out.
    """
    # Always by name: torch does not tell the pool of a capture that failed.
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    before = torch.cuda.current_stream(stream.device)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may go on allocating meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
    except BaseException:
        _abandon(graph, stream, pool)
        torch.cuda.set_stream(before)
        raise
    return graph


# Up to torch 2.12, allocators go on asking the graph of a failed capture whether streams are its own: it must be there.
_abandoned: list[torch.cuda.CUDAGraph] = []


def _abandon(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> None:
    """End a capture that failed at any point.

    `torch.cuda.graph` does not end one that is interrupted while it begins, and does not give the caller's stream back
    when its end fails; up to torch 2.12, the allocator then serves the capture for ever.
    """
    _abandoned.append(graph)
    torch.cuda.set_stream(stream)
    if torch.cuda.is_current_stream_capturing():
        with contextlib.suppress(RuntimeError):  # it says again what made the capture fail
            graph.capture_end()
    with contextlib.suppress(RuntimeError):
        graph.reset()
    # Refused where torch has done so by itself; where it has not, it has not released the graph's share either.
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)  # noqa: SLF001 -- as `torch.cuda.use_mem_pool` does
        torch._C._cuda_releasePool(stream.device.index, pool)  # noqa: SLF001
