"""Ctrl-C inside the loop, and forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from featinv_fast import Inversion, InversionInterrupted, Runtime


@pytest.fixture
def interrupt_at(own_runtime, watch):
    """`interrupt_at(call)`: a runtime that is interrupted in that call of the denoiser, and the list of its calls."""

    def make(call: int) -> tuple[Runtime, list[str]]:
        calls = []

        def before(graph, _):
            calls.append(graph)
            if graph == "denoiser" and calls.count(graph) == call:
                raise KeyboardInterrupt

        watch(own_runtime, before)
        return own_runtime, calls

    return make


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_a12_finished_rows_are_kept(interrupt_at, runtimes, tiny_maps, errors):
    # Batches of 3, 3 and 1 rows in 4 steps each: call 7 is the third step of the second batch.
    runtime, calls = interrupt_at(7)
    with pytest.raises(InversionInterrupted, match="3 of 7 images") as caught:
        runtime.invert(tiny_maps, batch_size=3, sampler="dpm++2m", steps=4, seed=5, errors=errors, output_type="float")
    assert isinstance(caught.value, KeyboardInterrupt)
    assert calls[-1] == "denoiser"
    assert calls.count("denoiser") == 7  # nothing ran after the interruption
    finished = caught.value.finished
    assert isinstance(finished, Inversion)
    assert finished.ok.tolist() == [True] * 3 + [False] * 4
    assert all("not computed" in str(finished.errors[row]) for row in range(3, 7))
    assert np.isnan(finished.images[3:]).all()
    expected = runtimes["torch"].invert(tiny_maps[:3], sampler="dpm++2m", steps=4, seed=5, output_type="float")
    assert np.array_equal(finished.images[:3], expected.images)


def test_a12_nothing_was_finished(interrupt_at, tiny_maps):
    runtime, _ = interrupt_at(1)
    with pytest.raises(InversionInterrupted, match="0 of 2") as caught:
        runtime.invert(tiny_maps[:2])
    assert not caught.value.finished.ok.any()


def test_a12_the_runtime_works_on_afterwards(interrupt_at, runtimes, tiny_maps):
    runtime, _ = interrupt_at(2)
    with pytest.raises(InversionInterrupted):
        runtime.invert(tiny_maps[:2], seed=1)
    again = runtime.invert(tiny_maps[:2], seed=1, output_type="float")
    assert np.array_equal(again.images, runtimes["torch"].invert(tiny_maps[:2], seed=1, output_type="float").images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a14_a_forked_child_is_refused_and_does_not_hang(tiny_engine):
    """In a process of its own: a fork of the test process would take the test runner along."""
    code = """
        import os, sys
        import torch
        from featinv_fast import Runtime
        from featinv_fast.errors import BackendUnavailableError

        maps, latents = torch.ones(64, 6, 5, 5), torch.ones(64, 4, 8, 8)
        for backend in ("torch", "onnxruntime"):
            runtime = Runtime(sys.argv[1], backend=backend, threads=2)
            runtime.invert(maps[:2], steps=1)  # the thread pools are running
            calls = {
                "invert": lambda: runtime.invert(maps),
                "encode_condition": lambda: runtime.encode_condition(maps),
                "decode": lambda: runtime.decode(latents),
                "warmup": lambda: runtime.warmup(64),
            }
            for name, call in calls.items():
                child = os.fork()
                if child == 0:
                    try:
                        call()
                    except BackendUnavailableError as error:
                        os._exit(0 if "spawn" in error.remedy else 2)
                    except BaseException:
                        os._exit(3)
                    os._exit(4)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                print(backend, name, code)
            runtime.invert(maps[:1], steps=1)  # the parent is none the worse
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tiny_engine)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 8
    assert {code for *_, code in lines} == {"0"}
