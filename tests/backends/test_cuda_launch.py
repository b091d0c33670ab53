"""What a launcher does with streams, graphs and memory, on a double that keeps CUDA's rules: no GPU is needed."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from device_memory import IllegalAccessError

from featinv_fast.backends.cuda_launch import CudaLauncher, capture

GPU = torch.device("cuda")
# Handles: the caller's stream is 7, the launcher's 8.
ORDERED = ("8 waits for 7", "7 waits for 8")


@pytest.fixture
def work(machine):
    """What is launched: `work.enqueue` adds one to `work.memory`, on the stream of the handle that it is given."""

    class Work:
        def __init__(self) -> None:
            self.memory = torch.zeros(4)
            self.error: BaseException | None = None
            self.address = self.memory.data_ptr()

        def enqueue(self, handle: int) -> None:
            if self.error is not None:
                raise self.error
            machine.launch(handle, lambda: machine.memory.view(self.address, (4,)).__iadd__(1))

    return Work()


def steps(machine) -> list[str]:
    """What happened since the last call."""
    found = [entry for entry in machine.log if not entry.startswith("synchronize")]
    machine.log.clear()
    return found


def around(*inside: str) -> list[str]:
    """Ordered after the caller's work before, and before the caller's work to come."""
    return [ORDERED[0], *inside, ORDERED[1]]


def test_first_call_by_call_then_captured_then_replayed(machine, work):
    launch = CudaLauncher(GPU)
    assert launch.handle == 8
    launch("a", work.enqueue)
    assert steps(machine) == around("launch 8")
    launch("a", work.enqueue)
    assert steps(machine) == around("begin 8", "launch 8", "end 8", "replay 8")
    launch("a", work.enqueue)
    assert steps(machine) == around("replay 8")
    assert work.memory.tolist() == [3.0] * 4


def test_another_key_starts_over(machine, work):
    launch = CudaLauncher(GPU)
    launch("a", work.enqueue)
    launch("a", work.enqueue)
    steps(machine)
    launch("b", work.enqueue)
    assert steps(machine) == around("launch 8")
    launch("a", work.enqueue)
    assert steps(machine) == around("launch 8")


def test_what_cannot_be_captured_is_launched_and_told_once(machine, work, caplog):
    launch = CudaLauncher(GPU)
    machine.fail = RuntimeError("operation not permitted when stream is capturing")
    launch("a", work.enqueue)
    steps(machine)
    launch("a", work.enqueue)
    assert steps(machine) == around("begin 8", "launch 8", "end 8", "launch 8")
    launch("a", work.enqueue)
    assert steps(machine) == around("launch 8")
    assert caplog.text.count("no CUDA graph") == 1


def test_inside_a_larger_capture_the_work_joins_it(machine, work):
    launch = CudaLauncher(GPU)
    stream, graph = machine.make_stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        launch("a", work.enqueue)
    assert steps(machine) == ["begin 9", "launch 9", "end 9"]
    graph.replay()
    assert work.memory.tolist() == [1.0] * 4


def test_an_error_of_the_first_launch_is_raised(work):
    work.error = ValueError()
    with pytest.raises(ValueError):  # noqa: PT011 -- the launch's own
        CudaLauncher(GPU)("a", work.enqueue)


REFUSED = RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("ends_allocation_first", [False, True], ids=["older torch", "newer torch"])
@pytest.mark.parametrize("where", ["before it begins", "as it begins", "in the work", "as it ends"])
@pytest.mark.parametrize("error", [REFUSED, torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()], ids=type)
def test_a_capture_that_fails_leaves_stream_and_allocator_as_they_were(machine, ends_allocation_first, where, error):
    machine.ends_allocation_first = ends_allocation_first
    mine, own = machine.make_stream(), machine.make_stream()
    torch.cuda.set_stream(mine)
    if where == "as it ends":
        machine.fail = error
    elif where != "in the work":
        (machine.capture if where == "before it begins" else machine.begun).side_effect = error

    def work() -> None:
        torch.zeros(3).add_(1)
        if where == "in the work":
            raise error

    with pytest.raises(type(error)) as caught:
        capture(work, own)
    assert caught.value is error
    assert torch.cuda.current_stream(GPU) is mine
    assert machine.captures_underway == []
    assert not any(machine.pools.values())
    assert not any(stream.capture for stream in machine.streams)
    torch.cuda.empty_cache()
    # Nothing is in the way of the next one.
    machine.fail = machine.capture.side_effect = machine.begun.side_effect = None
    memory = torch.zeros(3)
    graph = capture(lambda: memory.add_(1), own)
    memory.zero_()
    graph.replay()
    assert memory.tolist() == [1.0] * 3


def test_a_launcher_whose_capture_is_interrupted_goes_on(machine, work):
    launch = CudaLauncher(GPU)
    launch("a", work.enqueue)
    work.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        launch("a", work.enqueue)
    work.error = None
    for _ in range(3):
        launch("a", work.enqueue)
    assert work.memory.tolist() == [4.0] * 4


def test_a_first_launch_that_fails_is_not_followed_by_a_capture(machine, work):
    launch = CudaLauncher(GPU)
    work.error = REFUSED
    with pytest.raises(RuntimeError):
        launch("a", work.enqueue)
    work.error = None
    machine.log.clear()
    launch("a", work.enqueue)
    assert steps(machine) == around("launch 8")  # libraries prepare themselves in a run that ends well


def test_a_graph_on_memory_that_is_gone_is_no_graph_on_the_double(machine):
    """What the other tests rely on."""
    owner = [torch.zeros(4)]
    graph = capture(lambda: owner[0].add_(1), machine.make_stream())
    owner[0].fill_(5)
    graph.replay()
    assert owner[0].tolist() == [6.0] * 4  # what the address holds now
    address = owner.pop().data_ptr()
    with pytest.raises(IllegalAccessError):
        graph.replay()
    with pytest.raises(IllegalAccessError):
        machine.memory.view(address, (4,))


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda _: torch.cuda.synchronize()])
def test_nothing_waits_for_the_gpu_within_a_capture_on_the_double(machine, wait):
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(lambda: wait(torch.zeros(4)), machine.make_stream())


def test_threads_may_use_the_machine_at_the_same_time(machine):
    memory = machine.memory

    def work() -> None:
        for size in range(1, 300):
            used = torch.empty(size)
            used.fill_(size)
            assert (memory.view(used.data_ptr(), (size,)) == size).all()
            assert memory.allocation(used) in memory.all()

    # Threads change as often as they can, so that every gap is met; pytest fails the test whose threads raise.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
