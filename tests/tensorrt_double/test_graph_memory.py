"""A captured graph and the buffers that it was captured on live and die together, whatever fails in between."""

from __future__ import annotations

import pytest
import torch

from featinv_fast.backends import Request, load
from featinv_fast.engine.plans import BatchProfile
from featinv_fast.errors import FeatInvError

TWO_PROFILES = (BatchProfile(minimum=1, optimum=1, maximum=1), BatchProfile(minimum=3, optimum=4, maximum=8))
FAULTS = ("profile", "shape", "address", "infer", "execute", "memory", "memory of the output")


@pytest.fixture
def sessions(make_plans):
    """Two sessions of one engine: what one computes tells what the other has to."""
    engine = make_plans(profiles=TWO_PROFILES, max_batch=None)
    request = Request(engine=engine, device=torch.device("cpu"))
    return load(request, "tensorrt"), load(request, "tensorrt")


@pytest.fixture
def broken(simulation, machine):
    """`broken(fault)`: what fails at the next change of shapes, until `broken(None)`."""

    def make(fault: str | None) -> None:
        simulation.failures.clear()
        machine.memory.on_allocation = lambda _: None
        if fault is not None and not fault.startswith("memory"):
            simulation.failures[fault] = "Error Code 1: something"
        elif fault is not None:
            wanted = 1 if fault == "memory" else 2
            seen = []

            def run_out(tensor: torch.Tensor) -> None:
                seen.append(tensor)
                if len(seen) == wanted:
                    raise torch.OutOfMemoryError("CUDA out of memory")

            machine.memory.on_allocation = run_out

    return make


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_change_of_shapes_that_fails(sessions, broken, machine, tiny_maps, fault):
    session, fresh = sessions
    for _ in range(3):  # call by call, captured, replayed
        session.run("condition_encoder", tiny_maps[:1])
    broken(fault)
    with pytest.raises((FeatInvError, torch.OutOfMemoryError)):
        session.run("condition_encoder", tiny_maps[:4])
    broken(None)
    machine.memory.bury()
    for count in (1, 4, 1):
        for first in range(3):
            maps = tiny_maps[first : first + count]
            assert torch.equal(session.run("condition_encoder", maps), fresh.run("condition_encoder", maps))


def test_a_launch_that_fails_between_two_replays(sessions, broken, machine, tiny_maps):
    session, fresh = sessions
    for _ in range(3):
        session.run("condition_encoder", tiny_maps[:1])
    machine.replay.side_effect = RuntimeError("CUDA error")
    with pytest.raises(RuntimeError):
        session.run("condition_encoder", tiny_maps[:1])
    machine.replay.side_effect = None
    for first in range(3):
        maps = tiny_maps[first : first + 1]
        assert torch.equal(session.run("condition_encoder", maps), fresh.run("condition_encoder", maps))


def test_a_change_of_shapes_gives_back_the_buffers_and_the_graph_before(sessions, machine, tiny_maps):
    session, _ = sessions
    for _ in range(3):
        session.run("condition_encoder", tiny_maps[:1])
    before = set(machine.memory.allocations)
    assert sum(machine.pools.values()) == 1
    seen = []
    machine.memory.on_allocation = lambda _: seen.append((sum(machine.pools.values()), set(machine.memory.allocations)))
    session.run("condition_encoder", tiny_maps[:4])
    graphs, alive = seen[0]
    assert graphs == 0  # before anything new is allocated
    assert len(before - alive) == 2  # input and output


def test_callers_on_other_streams_are_served_in_order(sessions, machine, monkeypatch, tiny_maps):
    """What a replay reads is written on the launcher's own stream: two callers cannot overtake each other."""
    session, fresh = sessions
    streams, copy = [], torch.Tensor.copy_
    for first in range(4):
        torch.cuda.set_stream(machine.make_stream())
        maps = tiny_maps[first : first + 1]
        expected = fresh.run("condition_encoder", maps)
        with monkeypatch.context() as patch:
            patch.setattr(
                torch.Tensor, "copy_", lambda x, y: (streams.append(torch.cuda.current_stream()), copy(x, y))[1]
            )
            given = session.run("condition_encoder", maps)
        assert torch.equal(given, expected)
        assert streams
        assert torch.cuda.current_stream() not in streams
