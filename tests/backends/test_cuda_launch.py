"""The order of stream operations of a launcher, on a double of torch's stream functions: no GPU is needed."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

from featinv_fast.backends.cuda_launch import CudaLauncher

GPU = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """Torch's CUDA functions as autospecs on one recorder, with the caller's stream 7 and the launcher's 8."""
    record = mock.Mock()
    own = mock.create_autospec(torch.cuda.Stream, instance=True, cuda_stream=8)
    caller = mock.create_autospec(torch.cuda.Stream, instance=True, cuda_stream=7)
    record.attach_mock(own, "own")
    record.attach_mock(caller, "caller")
    record.graph = mock.create_autospec(torch.cuda.CUDAGraph, instance=True)
    record.capturing = False
    record.refuse = None

    @contextlib.contextmanager
    def capture(graph, *, pool, stream, capture_error_mode):
        assert (graph, pool, stream, capture_error_mode) == (record.graph, None, own, "thread_local")
        record.begin()
        yield
        record.end()
        if record.refuse:
            raise RuntimeError(record.refuse)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: caller)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: record.capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: record.graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return record


def steps(record: mock.Mock) -> list[str]:
    """What happened since the last call, without arguments but the launches'."""
    found = [name if name != "launch" else f"launch {arguments[0]}" for name, arguments, _ in record.mock_calls]
    record.reset_mock()
    return found


def test_first_call_by_call_then_captured_then_replayed(cuda):
    launch = CudaLauncher(GPU)
    assert launch.handle == 8
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "launch 8", "caller.wait_stream"]
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "begin", "launch 8", "end", "graph.replay", "caller.wait_stream"]
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "graph.replay", "caller.wait_stream"]


def test_another_key_starts_over(cuda):
    launch = CudaLauncher(GPU)
    launch("a", cuda.launch)
    launch("a", cuda.launch)
    steps(cuda)
    launch("b", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "launch 8", "caller.wait_stream"]
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "launch 8", "caller.wait_stream"]


def test_what_cannot_be_captured_is_launched_and_told_once(cuda, caplog):
    launch = CudaLauncher(GPU)
    cuda.refuse = "operation not permitted when stream is capturing"
    launch("a", cuda.launch)
    steps(cuda)
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "begin", "launch 8", "end", "launch 8", "caller.wait_stream"]
    launch("a", cuda.launch)
    assert steps(cuda) == ["own.wait_stream", "launch 8", "caller.wait_stream"]
    assert caplog.text.count("no CUDA graph") == 1


def test_inside_a_larger_capture_the_work_joins_it(cuda):
    launch = CudaLauncher(GPU)
    cuda.capturing = True
    launch("a", cuda.launch)
    assert steps(cuda) == ["launch 7"]


def test_an_error_of_the_first_launch_is_raised(cuda):
    cuda.launch.side_effect = ValueError
    with pytest.raises(ValueError):  # noqa: PT011 -- the launch's own
        CudaLauncher(GPU)("a", cuda.launch)
