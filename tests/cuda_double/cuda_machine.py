"""Streams, captures and graphs of an NVIDIA GPU on the CPU, by CUDA's rules; `torch.cuda.graph` itself is the real one.

Work runs when it is launched, unless its stream is being captured: then it is recorded with the addresses that it uses,
and every replay reads what these hold by then. What CUDA or torch's allocator refuse is refused here, in their words,
and a capture that fails leaves behind what it leaves behind there.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from device_memory import DeviceMemory, Reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from featinv_fast.backends.torch_ import limited_threads

# Waits for the GPU, which nothing may do within a capture.
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Stream:
    """A stream. Work on it is in order by itself: it runs at once.

    Attributes:
        cuda_stream: its handle.
        capture: the graph that its work becomes part of.
    """

    def __init__(self, machine: Machine, handle: int) -> None:
        self.machine, self.cuda_stream = machine, handle
        self.device = torch.device("cuda", 0)
        self.capture: Graph | None = None

    def wait_stream(self, other: Stream) -> None:
        """Order after another stream; from and to streams in a capture, it forks and joins that."""
        self.machine.log.append(f"{self.cuda_stream} waits for {other.cuda_stream}")
        if other.capture is not None and self.capture is None:
            self.capture = other.capture
            other.capture.forks[self] = None
        elif other.capture is not None:
            other.capture.forks.pop(other, None)
        elif self.capture is not None:
            self.capture.spoil("dependency created on uncaptured work in another stream")

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self.machine.log.append(f"synchronize {self.cuda_stream}")
        if self.capture is not None:
            self.capture.spoil("operation not permitted when stream is capturing")


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.number = machine, next(machine.numbers)
        self.nodes: list[Callable[[], None]] = []
        self.forks: dict[Stream, None] = {}
        self.stream: Stream | None = None
        self.pool: Any = None
        self.problem: str | None = None
        self.captured = self.holds_pool = False
        self._mode: TorchDispatchMode | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        """Record what is launched on the current stream from now on."""
        machine = self.machine
        stream = machine.current_stream()
        if stream is machine.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        assert capture_error_mode == "thread_local", "other threads may not allocate meanwhile"
        machine.capture(self.number)
        self.pool = pool or machine.graph_pool_handle()
        machine.begin_allocate_to_pool(self.pool)
        self.holds_pool = True
        machine.log.append(f"begin {stream.cuda_stream}")
        self.stream, stream.capture = stream, self
        self._mode = Recorder(self)
        self._mode.__enter__()
        machine.begun()

    def capture_end(self) -> None:
        """End it. Where it fails, torch's older releases leave the allocator as it is."""
        machine, stream = self.machine, self.stream
        assert stream is not None
        if machine.current_stream() is not stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        machine.log.append(f"end {stream.cuda_stream}")
        self.stop_recording()
        if self.forks:
            self.spoil("capturing stream has unjoined work", now=False)
        for each in machine.streams:
            each.capture = None if each.capture is self else each.capture
        if machine.fail is not None:
            self.problem = str(machine.fail)
        if machine.ends_allocation_first or self.problem is None:
            machine.end_allocate_to_pool(0, self.pool)
        if self.problem is not None:
            raise machine.fail or RuntimeError(f"CUDA error: {self.problem}")
        self.captured = True
        # Nothing has run yet: what the graph writes is unknown.
        self._poison()
        for node in self.nodes:
            getattr(node, "poison", lambda: None)()

    def stop_recording(self) -> None:
        """Leave the mode that sees torch's operations."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None

    def spoil(self, problem: str, *, now: bool = True) -> None:
        """The capture is invalid from here on, and its end will say so."""
        self.problem = self.problem or problem
        if now:
            raise RuntimeError(f"CUDA error: {problem}")

    def replay(self) -> None:
        """Run what was recorded on what its addresses hold now."""
        assert self.captured, "Called CUDAGraph::replay without a preceding successful capture."
        machine = self.machine
        assert machine.current_stream().capture is None, "a graph within a capture"
        machine.log.append(f"replay {machine.current_stream().cuda_stream}")
        machine.replay(self.number)
        machine.memory.bury()
        self._poison()
        with torch.inference_mode(), limited_threads(1):  # there is too little work for more
            for node in self.nodes:
                node()

    def _poison(self) -> None:
        """Other graphs of the pool have used the memory that only lives within this one."""
        for allocation in self.machine.memory.all():
            if allocation.pool is self and not allocation.is_referenced:
                allocation.poison()

    def reset(self) -> None:
        """Give everything back; of a failed capture, torch's older releases keep the pool."""
        machine = self.machine
        if machine.ends_allocation_first and self.pool in machine.captures_underway:
            machine.end_allocate_to_pool(0, self.pool)
        if self.holds_pool and (self.captured or machine.ends_allocation_first):
            machine.release_pool(0, self.pool)
        self.holds_pool = self.captured = False
        self.nodes.clear()
        for allocation in machine.memory.all():
            if allocation.pool is self:
                allocation.leave_pool()

    def __del__(self) -> None:
        self.reset()


class Machine:
    """A GPU.

    Attributes:
        memory: its memory.
        log: what happened to streams and graphs.
        capture, replay: mocks that are told the number of each graph that is captured or replayed, and may raise.
        begun: the mock that is called when a capture has begun, and may raise.
        event: the mock of all events.
        fail: raised at the end of each capture.
        ends_allocation_first: at the end of a capture that fails, as torch's newer releases do.
        pools: graph pools by handle, with the number of graphs that hold them; it stays when that is zero.
        captures_underway: pools that the allocator serves captures from.
    """

    def __init__(self) -> None:
        self.memory = DeviceMemory()
        self.log: list[str] = []
        self.capture, self.begun, self.replay, self.event = mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock()
        self.fail: BaseException | None = None
        self.ends_allocation_first = False
        self.pools: dict[Any, int] = {}
        self.captures_underway: list[Any] = []
        self.streams: list[Stream] = []
        self.numbers = itertools.count()
        self._handles, self._pool_handles = itertools.count(7), itertools.count(1)
        self.default = self.make_stream()
        self._current = threading.local()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the machine in the place of torch's CUDA."""
        self.memory.install(patch)
        replacements = {
            "Stream": self.make_stream,
            "current_stream": self.current_stream,
            "default_stream": lambda _=None: self.default,
            "set_stream": self.set_stream,
            "current_device": lambda: 0,
            "_get_device_index": lambda *_, **__: 0,
            "device": contextlib.nullcontext,  # a class, as the real one
            "is_current_stream_capturing": lambda: self.current_stream().capture is not None,
            "synchronize": lambda _=None: self.current_stream().synchronize(),
            "empty_cache": self.empty_cache,
            "Event": lambda *_, **__: self.event,
            "graph_pool_handle": self.graph_pool_handle,
            "CUDAGraph": lambda *_, **__: Graph(self),
        }
        for name, replacement in replacements.items():
            patch.setattr(torch.cuda, name, replacement)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate_to_pool, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release_pool, raising=False)

    def close(self) -> None:
        """End what a test that failed has left open in this thread."""
        for stream in self.streams:
            if stream.capture is not None:
                stream.capture.stop_recording()

    def make_stream(self, _: object = None) -> Stream:
        """A new stream."""
        stream = Stream(self, next(self._handles))
        self.streams.append(stream)
        return stream

    def current_stream(self, _: object = None) -> Stream:
        """Of this thread."""
        return getattr(self._current, "stream", self.default)

    def set_stream(self, stream: Stream) -> None:
        """For this thread."""
        self._current.stream = stream

    def launch(self, handle: int, kernel: Callable[[], None]) -> None:
        """Launch on the stream of a handle: run, or record where that is captured."""
        (stream,) = [each for each in self.streams if each.cuda_stream == handle]
        self.log.append(f"launch {handle}")
        if stream.capture is None:
            kernel()
        else:
            stream.capture.nodes.append(kernel)

    # -- the allocator

    def graph_pool_handle(self) -> tuple[int, int]:
        """A handle that nobody has."""
        return (0, next(self._pool_handles))

    def begin_allocate_to_pool(self, pool: Any) -> None:
        """Serve a capture from a pool."""
        if self.pools.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        if pool in self.captures_underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.pools[pool] = self.pools.get(pool, 0) + 1
        self.captures_underway.append(pool)

    def end_allocate_to_pool(self, _: int, pool: Any) -> None:
        """No longer."""
        if pool not in self.captures_underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.captures_underway.remove(pool)

    def release_pool(self, _: int, pool: Any) -> None:
        """One graph less."""
        self.pools[pool] -= 1
        assert self.pools[pool] >= 0, "a pool released twice"

    def empty_cache(self) -> None:
        """Free what is cached, which must not be during a capture."""
        if self.captures_underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")


class Recorder(TorchDispatchMode):
    """Makes torch's operations on a captured stream nodes of its graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.graph.machine.current_stream().capture is not self.graph:
            return function(*args, **(kwargs or {}))
        if function in WAITS:
            self.graph.spoil("operation not permitted when stream is capturing")
        # Referenced before: its memory is then known not to be of this capture.
        refer = self.graph.machine.memory.reference
        given = tree_map_only(Tensor, refer, (args, kwargs or {}))
        output = function(*args, **(kwargs or {}))
        made = tree_map_only(Tensor, lambda tensor: refer(tensor, self.graph), output)
        self.graph.nodes.append(Operation(function, given, made))
        return output


class Operation:
    """An operation of torch on fixed addresses."""

    def __init__(self, function: Any, given: Any, made: Any) -> None:
        self.function, self.given, self.made = function, given, made

    def __call__(self) -> None:
        args, kwargs = tree_map_only(Reference, Reference.tensor, self.given)
        again = self.function(*args, **kwargs)

        def put(reference: Reference, new: Any) -> None:
            old = reference.tensor()
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

        if isinstance(self.made, Reference):
            put(self.made, again)
        elif isinstance(self.made, list | tuple):
            for reference, new in zip(self.made, again, strict=True):
                if isinstance(reference, Reference):
                    put(reference, new)

    def poison(self) -> None:
        """What was written in place while it was recorded has not been written: it is unknown."""
        if self.function._schema.is_mutable and isinstance(self.made, Reference) and self.made.dtype.is_floating_point:
            self.made.tensor().fill_(float("nan"))
